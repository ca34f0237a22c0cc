// Windows over planes of up to three dimensions, and which thread works where. Sizes of dimensions
// that lack are 1. An index has INDEX bits, which a file of kernels says before it includes this:
// 32 unless there are too many elements for them.
//
// Images lie as planes, one behind the other, or with the channels of a place side by side. A thread
// works at one place of several planes, or of a pack of channels.
#pragma once
#include "columns.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

template <int bits> struct Integer {
    typedef i64 type;
};
template <> struct Integer<32> {
    typedef int type;
};
typedef Integer<INDEX>::type I;

static constexpr int PLANES = 4;  // that a thread works on at once, or one
static constexpr int CHANNELS = Pack<T>::size;

struct Span {
    I start, stop;
};

// a / b, where b is often 1.
__device__ inline I over(I a, I b) { return b == 1 ? a : a / b; }

// A dimension: `in` elements, and `out` windows of `kernel` elements (taps) that are `dilation`
// apart.
struct Axis {
    I in, out, kernel, stride, before, dilation;

    // Where window o begins, maybe in the padding.
    __device__ I origin(I o) const { return o * stride - before; }

    // The taps of the window that begins at `origin` that are not padding.
    __device__ Span taps(I origin) const {
        Span t;
        I first = origin < 0 ? dilation - 1 - origin : 0, room = in - 1 - origin;
        room = room < 0 ? -1 : over(room, dilation);
        t.start = over(first, dilation);
        t.stop = room + 1 < kernel ? room + 1 : kernel;
        return t;
    }

    // The windows between whose first and last tap element i lies.
    __device__ Span windows(I i) const {
        Span t;
        I behind = i + before - (kernel - 1) * dilation, last = over(i + before, stride);
        t.start = behind <= 0 ? 0 : over(behind + stride - 1, stride);
        t.stop = last + 1 < out ? last + 1 : out;
        return t;
    }

    // Which tap of window o, one of `windows(i)`, sees element i; or -1.
    __device__ I tap(I i, I o) const {
        I apart = i - origin(o);
        if (dilation == 1) return apart;
        return apart % dilation ? -1 : apart / dilation;
    }
};

struct Shape {
    i64 planes;
    int each;      // planes of a thread
    int channels;  // that are side by side, or 0
    Axis d, h, w;

    __device__ I inputs() const { return d.in * h.in * w.in; }
    __device__ I outputs() const { return d.out * h.out * w.out; }

    // Whether windows are 2 × 2 and tile their planes, with rows of whole packs.
    __device__ bool tiled() const {
        return !channels && d.kernel == 1 && d.in == d.out &&
               h.kernel == 2 && w.kernel == 2 && h.stride == 2 && w.stride == 2 &&
               h.before == 0 && w.before == 0 && h.dilation == 1 && w.dilation == 1 &&
               h.in == 2 * h.out && w.in == 2 * w.out && w.in % Pack<T>::size == 0;
    }
};

#define SHAPE                                                                                    \
    i64 planes, i64 each, i64 channels, i64 i0, i64 i1, i64 i2, i64 o0, i64 o1, i64 o2, i64 k0,  \
        i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 b0, i64 b1, i64 b2, i64 d0, i64 d1, i64 d2
#define SHAPE_GIVEN                                                                              \
    {                                                                                            \
        planes, (int)each, (int)channels, {(I)i0, (I)o0, (I)k0, (I)s0, (I)b0, (I)d0},            \
            {(I)i1, (I)o1, (I)k1, (I)s1, (I)b1, (I)d1},                                          \
            {(I)i2, (I)o2, (I)k2, (I)s2, (I)b2, (I)d2}                                           \
    }

// N planes of `places` elements: where those at one place are.
template <int N> struct Planes {
    static constexpr int size = N;
    i64 first;

    __device__ i64 at(I places, I place, int r) const { return (first + r) * places + place; }
    template <class X> __device__ Few<N, X> read(const X* x, I places, I place) const {
        Few<N, X> out;
#pragma unroll
        for (int r = 0; r < N; r++) out.at[r] = x[at(places, place, r)];
        return out;
    }
    template <class X>
    __device__ void write(X* x, I places, I place, const Few<N, X>& values) const {
#pragma unroll
        for (int r = 0; r < N; r++) x[at(places, place, r)] = values.at[r];
    }
};

// N channels that are side by side, of all `channels` of an image.
template <int N> struct Channels {
    static constexpr int size = N;
    i64 image;
    I first, channels;

    __device__ i64 at(I places, I place, int r) const {
        return image * places * channels + first + r + place * channels;
    }
    template <class X> __device__ Few<N, X> read(const X* x, I places, I place) const {
        return load_few<N>(x + at(places, place, 0));
    }
    template <class X>
    __device__ void write(X* x, I places, I place, const Few<N, X>& values) const {
        store_few(x + at(places, place, 0), values);
    }
};

// f(Planes, at, d, h, w) for each place of planes of size (depth, height, width), in so many planes:
// what depends on the place alone is found once for them.
template <class F>
__device__ inline void plane_places(const Shape& s, I depth, I height, I width, F f) {
    i64 groups = s.each == 1 ? s.planes : (s.planes + PLANES - 1) / PLANES;
    I size = depth * height * width, total = (I)groups * size;
    for (I i = (I)thread_index(); i < total; i += (I)thread_count()) {
        I group = i / size, at = i - group * size, row = at / width;
        I d = depth == 1 ? 0 : row / height, h = row - d * height, w = at - row * width;
        i64 plane = (i64)group * s.each, stop = plane + s.each;
        if (stop > s.planes) stop = s.planes;
        if (stop - plane == PLANES) {
            f(Planes<PLANES>{plane}, at, d, h, w);
        } else {
            for (; plane < stop; plane++) f(Planes<1>{plane}, at, d, h, w);
        }
    }
}

// The same with Channels: N of them to a thread, so that neighbours read neighbours.
template <int N, class F>
__device__ inline void channel_places(const Shape& s, I depth, I height, I width, F f) {
    I size = depth * height * width, across = s.channels / N;
    I total = (I)(s.planes / s.channels) * size * across;
    for (I i = (I)thread_index(); i < total; i += (I)thread_count()) {
        I place = i / across, group = i - place * across, image = place / size;
        I at = place - image * size, row = at / width;
        I d = depth == 1 ? 0 : row / height, h = row - d * height, w = at - row * width;
        f(Channels<N>{image, group * N, (I)s.channels}, at, d, h, w);
    }
}

// One of them; `packed` says whether all arrays begin where packs do.
template <class F>
__device__ inline void places(const Shape& s, bool packed, I depth, I height, I width, F f) {
    if (s.channels == 0) {
        plane_places(s, depth, height, width, f);
    } else if (packed && s.channels % CHANNELS == 0) {
        channel_places<CHANNELS>(s, depth, height, width, f);
    } else {
        channel_places<1>(s, depth, height, width, f);
    }
}

// f(upper, small) for each pack of an upper row of windows that are `tiled`: where it begins among
// the elements, the lower row's being a row behind, and where its windows are.
template <class F> __device__ inline void tiles(const Shape& s, F f) {
    I packs = s.w.in / Pack<T>::size, total = (I)(s.planes * s.d.out) * s.h.out * packs;
    for (I i = (I)thread_index(); i < total; i += (I)thread_count()) {
        I row = i / packs, j = i - row * packs;
        f((i64)row * 2 * s.w.in + j * Pack<T>::size, (i64)row * s.w.out + j * (Pack<T>::size / 2));
    }
}

// What the windows of a pack of an upper row have.
template <class X> struct alignas(Pack<T>::size / 2 * sizeof(X)) Tiles {
    static constexpr int size = Pack<T>::size / 2;
    X at[size];
};
template <class X> __device__ inline Tiles<X> load_tiles(const X* from) {
    return *reinterpret_cast<const Tiles<X>*>(from);
}
template <class X> __device__ inline void store_tiles(X* to, const Tiles<X>& tiles) {
    *reinterpret_cast<Tiles<X>*>(to) = tiles;
}
