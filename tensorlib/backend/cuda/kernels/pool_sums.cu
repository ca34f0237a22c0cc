// Scaled sums over windows, and their adjoint, which spreads values over windows.
//
// Where not 0, `counted` makes up for windows with fewer elements than the kernel: their sums are
// times the kernel's size over the number of those inside (1), or inside the padded input (2).
#define INDEX NUMBER_1
#include "windows.cuh"

// How many elements of window o are counted, along one axis.
__device__ inline I elements(const Axis& a, I o, bool padding) {
    I start = a.origin(o), stop = start + a.kernel, end = padding ? a.in + a.before : a.in;
    if (!padding && start < 0) start = 0;
    return (stop < end ? stop : end) - start;
}

KERNEL window_sums(const T* x, T* out, double scale, i64 counted, SHAPE) {
    Shape s = SHAPE_GIVEN;
    A factor = (A)scale, taps = (A)(s.d.kernel * s.h.kernel * s.w.kernel);
    bool packed = aligned(x) && aligned(out);
    if (s.tiled() && packed) {
        tiles(s, [&](i64 from, i64 to) {
            Pack<T> upper = load_pack(x + from), lower = load_pack(x + from + s.w.in);
            Tiles<T> sums;
#pragma unroll
            for (int k = 0; k < Tiles<T>::size; k++) {
                A above = widen(upper.at[2 * k]) + widen(upper.at[2 * k + 1]);
                A below = widen(lower.at[2 * k]) + widen(lower.at[2 * k + 1]);
                narrow((above + below) * factor, sums.at[k]);
            }
            store_tiles(out + to, sums);
        });
        return;
    }
    I size = s.inputs(), windows = s.outputs();
    places(s, packed, s.d.out, s.h.out, s.w.out, [&](auto some, I at, I d, I h, I w) {
        constexpr int N = decltype(some)::size;
        I d_from = s.d.origin(d), h_from = s.h.origin(h), w_from = s.w.origin(w);
        Span ds = s.d.taps(d_from), hs = s.h.taps(h_from), ws = s.w.taps(w_from);
        A sums[N];
#pragma unroll
        for (int r = 0; r < N; r++) sums[r] = A(0);
        for (I di = d_from + ds.start; di < d_from + ds.stop; di++) {
            for (I hi = h_from + hs.start; hi < h_from + hs.stop; hi++) {
                I row = (di * s.h.in + hi) * s.w.in + w_from;
                for (I place = row + ws.start; place < row + ws.stop; place++) {
                    Few<N, T> values = some.read(x, size, place);
#pragma unroll
                    for (int r = 0; r < N; r++) sums[r] += widen(values.at[r]);
                }
            }
        }
        A short_of = A(1);
        if (counted) {
            I inside = elements(s.d, d, counted == 2) * elements(s.h, h, counted == 2);
            short_of = taps / (A)(inside * elements(s.w, w, counted == 2));
        }
        Few<N, T> total;
#pragma unroll
        for (int r = 0; r < N; r++) narrow(sums[r] * factor * short_of, total.at[r]);
        some.write(out, windows, at, total);
    });
}

// scale · the sum of each plane of n elements: a warp to each where blocks are 32 wide, or a block.
KERNEL plane_sums(const T* x, T* out, double scale, i64 planes, i64 n) {
    bool packed = n % Pack<T>::size == 0 && aligned(x);
    i64 first = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    for (i64 plane = first; plane < planes; plane += (i64)gridDim.x * blockDim.y) {
        const T* from = x + plane * n;
        A sum = A(0);
        if (packed) {
            for (I i = threadIdx.x; i < n / Pack<T>::size; i += blockDim.x) {
                Pack<T> pack = load_pack(from + (i64)i * Pack<T>::size);
#pragma unroll
                for (int k = 0; k < Pack<T>::size; k++) sum += widen(pack.at[k]);
            }
        } else {
            for (I i = threadIdx.x; i < n; i += blockDim.x) sum += widen(from[i]);
        }
        sum = blockDim.x == 32 ? warp_sum(sum) : block_sum(sum);
        if (threadIdx.x == 0) narrow(sum * (A)scale, out[plane]);
    }
}

// Each element is the sum of the windows that it is in, each scaled.
KERNEL spread_windows(const T* g, T* out, double scale, i64 counted, SHAPE) {
    Shape s = SHAPE_GIVEN;
    A factor = (A)scale, taps = (A)(s.d.kernel * s.h.kernel * s.w.kernel);
    bool packed = aligned(g) && aligned(out);
    if (s.tiled() && packed) {
        tiles(s, [&](i64 to, i64 from) {
            Tiles<T> values = load_tiles(g + from);
            Pack<T> row;
#pragma unroll
            for (int k = 0; k < Tiles<T>::size; k++) {
                narrow(widen(values.at[k]) * factor, row.at[2 * k]);
                row.at[2 * k + 1] = row.at[2 * k];
            }
            store_pack(out + to, row);
            store_pack(out + to + s.w.in, row);
        });
        return;
    }
    I size = s.inputs(), windows = s.outputs();
    places(s, packed, s.d.in, s.h.in, s.w.in, [&](auto some, I at, I d, I h, I w) {
        constexpr int N = decltype(some)::size;
        Span ds = s.d.windows(d), hs = s.h.windows(h), ws = s.w.windows(w);
        A sums[N];
#pragma unroll
        for (int r = 0; r < N; r++) sums[r] = A(0);
        for (I od = ds.start; od < ds.stop; od++) {
            for (I oh = hs.start; oh < hs.stop; oh++) {
                I row = (od * s.h.out + oh) * s.w.out, inside = 1;
                if (counted)
                    inside = elements(s.d, od, counted == 2) * elements(s.h, oh, counted == 2);
                for (I ow = ws.start; ow < ws.stop; ow++) {
                    A weight = factor;
                    if (counted) weight *= taps / (A)(inside * elements(s.w, ow, counted == 2));
                    Few<N, T> values = some.read(g, windows, row + ow);
#pragma unroll
                    for (int r = 0; r < N; r++) sums[r] += widen(values.at[r]) * weight;
                }
            }
        }
        Few<N, T> total;
#pragma unroll
        for (int r = 0; r < N; r++) narrow(sums[r], total.at[r]);
        some.write(out, size, at, total);
    });
}
