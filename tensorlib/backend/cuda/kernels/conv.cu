// Convolution as a matrix product whose factors are never written down (implicit GEMM): the fallback
// where no library has it. Up to three spatial dimensions; sizes of those that lack are 1.
//
//     forward   out (O, N P)  =  weight (O, C K)       · windows (C K, N P)
//     data      dx  (C, N I)  =  weightᵀ (C, O K)      · places of g that saw an input (O K, N I)
//     weight    dw  (O, C K)  =  g (O, N P)            · windowsᵀ (N P, C K)
//
// for each group of channels; P and I are positions of an output and an input, K taps of the kernel.
// A block makes 64 × 64 elements, a thread 4 × 4 of them, 16 products of each at a time. Images and
// weights lie as planes, or with all channels of a place side by side.
#include "common.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

static constexpr int SIDE = 64, DEEP = 16;

struct Shape {
    i64 images, in_channels, out_channels, groups;
    bool last;  // the channels
    int in[3], out[3], kernel[3], stride[3], before[3], dilation[3];

    __device__ i64 inputs() const { return (i64)in[0] * in[1] * in[2]; }
    __device__ i64 outputs() const { return (i64)out[0] * out[1] * out[2]; }
    __device__ i64 taps() const { return (i64)kernel[0] * kernel[1] * kernel[2]; }
    __device__ i64 in_group() const { return in_channels / groups; }
    __device__ i64 out_group() const { return out_channels / groups; }

    // Where element `place` of a channel is, in an image or a kernel of so many of each.
    __device__ i64 at(i64 channel, i64 place, i64 channels, i64 places) const {
        return last ? place * channels + channel : channel * places + place;
    }

    // The input's position that tap `tap` of output `p` sees, or -1.
    __device__ i64 seen(int p, int tap) const {
        i64 at = 0;
        int places[3] = {p / (out[1] * out[2]), p / out[2] % out[1], p % out[2]};
        int offsets[3] = {tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1],
                          tap % kernel[2]};
#pragma unroll
        for (int d = 0; d < 3; d++) {
            i64 i = (i64)places[d] * stride[d] - before[d] + (i64)offsets[d] * dilation[d];
            if (i < 0 || i >= in[d]) return -1;
            at = at * in[d] + i;
        }
        return at;
    }

    // The output's position of which tap `tap` sees input `p`, or -1.
    __device__ i64 seeing(int p, int tap) const {
        i64 at = 0;
        int places[3] = {p / (in[1] * in[2]), p / in[2] % in[1], p % in[2]};
        int offsets[3] = {tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1],
                          tap % kernel[2]};
#pragma unroll
        for (int d = 0; d < 3; d++) {
            i64 i = (i64)places[d] + before[d] - (i64)offsets[d] * dilation[d];
            if (i < 0 || i % stride[d] || i / stride[d] >= out[d]) return -1;
            at = at * out[d] + i / stride[d];
        }
        return at;
    }
};

#define SHAPE                                                                                    \
    i64 images, i64 in_channels, i64 out_channels, i64 groups, i64 last, i64 i0, i64 i1, i64 i2, \
        i64 o0, i64 o1, i64 o2, i64 k0, i64 k1, i64 k2, i64 s0, i64 s1, i64 s2, i64 b0, i64 b1,  \
        i64 b2, i64 d0, i64 d1, i64 d2
#define SHAPE_GIVEN                                                                              \
    {                                                                                            \
        images, in_channels, out_channels, groups, last != 0, {(int)i0, (int)i1, (int)i2},       \
            {(int)o0, (int)o1, (int)o2}, {(int)k0, (int)k1, (int)k2},                            \
            {(int)s0, (int)s1, (int)s2}, {(int)b0, (int)b1, (int)b2},                            \
            {(int)d0, (int)d1, (int)d2}                                                          \
    }

// store(group, part, m, n, Σ over the part's k of left(m, k) right(k, n)) for all m and n. A side
// is made anew for a column of `right`, so that what depends on n alone is found once.
template <class Left, class Right, class Store>
__device__ inline void product(i64 groups, i64 rows, i64 columns, i64 deep, i64 parts, i64 length,
                               Left left, Right right, Store store) {
    __shared__ A a[DEEP][SIDE + 1], b[DEEP][SIDE + 1];
    i64 down = (rows + SIDE - 1) / SIDE, across = (columns + SIDE - 1) / SIDE;
    int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (i64 item = blockIdx.x; item < groups * parts * down * across; item += gridDim.x) {
        i64 n0 = item % across * SIDE, m0 = item / across % down * SIDE;
        i64 part = item / across / down % parts, group = item / across / down / parts;
        i64 start = part * length, stop = start + length < deep ? start + length : deep;
        A sums[4][4];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) sums[i][j] = A(0);
        int column = threadIdx.x % SIDE;
        auto of_column = right(group, n0 + column);
        for (i64 k0 = start; k0 < stop; k0 += DEEP) {
            __syncthreads();
            for (int i = threadIdx.x; i < DEEP * SIDE; i += blockDim.x) {
                i64 k = k0 + i % DEEP, m = m0 + i / DEEP;
                a[i % DEEP][i / DEEP] = k < stop && m < rows ? left(group, m, k) : A(0);
            }
            for (int i = threadIdx.x / SIDE; i < DEEP; i += blockDim.x / SIDE)
                b[i][column] =
                    k0 + i < stop && n0 + column < columns ? of_column(k0 + i) : A(0);
            __syncthreads();
#pragma unroll
            for (int k = 0; k < DEEP; k++) {
                A from[4], to[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    from[i] = a[k][y + 16 * i];
                    to[i] = b[k][x + 16 * i];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[i][j] += from[i] * to[j];
            }
        }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                i64 m = m0 + y + 16 * i, n = n0 + x + 16 * j;
                if (m < rows && n < columns) store(group, part, m, n, sums[i][j]);
            }
    }
}

KERNEL convolve(const T* x, const T* weight, const T* bias, T* out, SHAPE) {
    Shape s = SHAPE_GIVEN;
    i64 deep = s.in_group() * s.taps(), taps = s.taps(), positions = s.outputs();
    auto left = [&](i64 group, i64 m, i64 k) -> A {
        i64 at = s.at((int)k / (int)taps, (int)k % (int)taps, s.in_group(), taps);
        return widen(weight[(group * s.out_group() + m) * deep + at]);
    };
    auto right = [&](i64 group, i64 n) {
        const T* from = x + n / positions * s.in_channels * s.inputs();
        i64 first = group * s.in_group();
        int p = (int)(n % positions);
        return [=, &s](i64 k) -> A {
            i64 at = s.seen(p, (int)k % (int)taps), channel = first + (int)k / (int)taps;
            return at < 0 ? A(0) : widen(from[s.at(channel, at, s.in_channels, s.inputs())]);
        };
    };
    auto store = [&](i64 group, i64, i64 m, i64 n, A sum) {
        i64 channel = group * s.out_group() + m;
        if (bias) sum += widen(bias[channel]);
        T* to = out + n / positions * s.out_channels * positions;
        narrow(sum, to[s.at(channel, n % positions, s.out_channels, positions)]);
    };
    product(s.groups, s.out_group(), s.images * positions, deep, 1, deep, left, right, store);
}

KERNEL convolve_data(const T* g, const T* weight, T* dx, SHAPE) {
    Shape s = SHAPE_GIVEN;
    i64 taps = s.taps(), positions = s.inputs(), deep = s.out_group() * taps;
    auto left = [&](i64 group, i64 m, i64 k) -> A {
        int o = (int)k / (int)taps, tap = (int)k % (int)taps;
        i64 from = (group * s.out_group() + o) * s.in_group() * taps;
        return widen(weight[from + s.at(m, tap, s.in_group(), taps)]);
    };
    auto right = [&](i64 group, i64 n) {
        const T* from = g + n / positions * s.out_channels * s.outputs();
        i64 first = group * s.out_group();
        int p = (int)(n % positions);
        return [=, &s](i64 k) -> A {
            i64 at = s.seeing(p, (int)k % (int)taps), channel = first + (int)k / (int)taps;
            return at < 0 ? A(0) : widen(from[s.at(channel, at, s.out_channels, s.outputs())]);
        };
    };
    auto store = [&](i64 group, i64, i64 m, i64 n, A sum) {
        i64 channel = group * s.in_group() + m;
        T* to = dx + n / positions * s.in_channels * positions;
        narrow(sum, to[s.at(channel, n % positions, s.in_channels, positions)]);
    };
    product(s.groups, s.in_group(), s.images * positions, deep, 1, deep, left, right, store);
}

// parts[part] is the share of some positions in dw; a second launch sums them.
KERNEL convolve_weight(const T* x, const T* g, A* dw, i64 parts, i64 length, SHAPE) {
    Shape s = SHAPE_GIVEN;
    i64 taps = s.taps(), positions = s.outputs(), columns = s.in_group() * taps;
    auto left = [&](i64 group, i64 m, i64 k) -> A {
        i64 channel = group * s.out_group() + m, image = k / positions;
        i64 at = s.at(channel, k - image * positions, s.out_channels, positions);
        return widen(g[image * s.out_channels * positions + at]);
    };
    auto right = [&](i64 group, i64 n) {
        int tap = (int)(n % taps);
        i64 channel = group * s.in_group() + n / taps, image = s.in_channels * s.inputs();
        return [=, &s](i64 k) -> A {
            i64 at = s.seen((int)(k % positions), tap);
            const T* from = x + k / positions * image;
            return at < 0 ? A(0) : widen(from[s.at(channel, at, s.in_channels, s.inputs())]);
        };
    };
    auto store = [&](i64 group, i64 part, i64 m, i64 n, A sum) {
        i64 to = ((part * s.groups + group) * s.out_group() + m) * columns;
        dw[to + s.at(n / taps, n % taps, s.in_group(), taps)] = sum;
    };
    product(s.groups, s.out_group(), columns, s.images * positions, parts, length, left, right,
            store);
}
