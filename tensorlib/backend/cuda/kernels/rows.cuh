// Rows and columns: who takes which, walking along them, and what their threads sum together.
//
// A row belongs to a warp where blocks are 32 wide (blockDim.y rows at a time), else to a block.
// Columns belong to threads: blockDim.x of them side by side, the rows shared by blockDim.y.
#pragma once
#define THREADS 512
#ifndef BLOCKS
#define BLOCKS 2
#endif
#include "common.cuh"

__device__ inline i64 first_row() { return (i64)blockIdx.x * blockDim.y + threadIdx.y; }
__device__ inline i64 row_step() { return (i64)gridDim.x * blockDim.y; }

template <class X> __device__ inline X row_sum(X x) {
    return blockDim.x == 32 ? warp_sum(x) : block_sum(x);
}
template <class X> __device__ inline Pair<X> row_sums(X a, X b) {
    if (blockDim.x > 32) return block_sums(a, b);
    Pair<X> out;
    out.first = warp_sum(a);
    out.second = warp_sum(b);
    return out;
}

template <class X> __device__ inline X row_max(X x) {
    __shared__ X parts[32];
    x = warp_max(x);
    if (blockDim.x == 32) return x;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? parts[lane] : -X(INFINITY_F));
}

// Where the part of a row that goes by 16 bytes begins: few elements in, also where rows of an odd
// length lie at any address. At the end if `other`, which is walked along with it, lies differently.
template <class X> __device__ inline i64 first_pack(const X* row, i64 n) {
    i64 before = (i64)(-(u64)row & 15) / (i64)sizeof(X);
    return before < n ? before : n;
}
template <class X> __device__ inline i64 first_pack(const X* row, const X* other, i64 n) {
    return (((u64)row ^ (u64)other) & 15) == 0 ? first_pack(row, n) : n;
}

// Packs that a thread reads before it uses the first of them: memory is far away.
static constexpr int DEPTH = 4;

// one(x[j], j) for what of a row falls to this thread outside of packs, many(pack, j) for its packs
// from element j on; the elements as they are stored.
template <class X, class F, class G>
__device__ inline void over_packs(const X* row, i64 n, F one, G many) {
    constexpr int size = Pack<X>::size;
    const int step = blockDim.x;
    i64 start = first_pack(row, n), packs = (n - start) / size, i = threadIdx.x;
    for (i64 j = threadIdx.x; j < start; j += step) one(row[j], j);
    for (; i + (DEPTH - 1) * step < packs; i += DEPTH * step) {
        Pack<X> a[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) a[d] = load_pack(row + start + (i + d * step) * size);
#pragma unroll
        for (int d = 0; d < DEPTH; d++) many(a[d], start + (i + d * step) * size);
    }
#pragma unroll 1
    for (; i < packs; i += step) many(load_pack(row + start + i * size), start + i * size);
    for (i64 j = start + packs * size + threadIdx.x; j < n; j += step) one(row[j], j);
}

// f(x[j], j) for all j of a row that fall to this thread.
template <class X, class F> __device__ inline void over(const X* row, i64 n, F f) {
    over_packs(row, n, f, [&](const Pack<X>& a, i64 at) {
#pragma unroll
        for (int k = 0; k < Pack<X>::size; k++) f(a.at[k], at + k);
    });
}

// The same for two rows at once: f(x[j], y[j], j).
template <class X, class F>
__device__ inline void over(const X* row, const X* other, i64 n, F f) {
    constexpr int size = Pack<X>::size, deep = DEPTH / 2;
    const int step = blockDim.x;
    i64 start = first_pack(row, other, n), packs = (n - start) / size, i = threadIdx.x;
    for (i64 j = threadIdx.x; j < start; j += step) f(row[j], other[j], j);
    for (; i < packs; i += deep * step) {
        Pack<X> a[deep], b[deep];
#pragma unroll
        for (int d = 0; d < deep; d++) {
            if (i + d * step >= packs) continue;
            a[d] = load_pack(row + start + (i + d * step) * size);
            b[d] = load_pack(other + start + (i + d * step) * size);
        }
#pragma unroll
        for (int d = 0; d < deep; d++) {
            if (i + d * step >= packs) continue;
#pragma unroll
            for (int k = 0; k < size; k++)
                f(a[d].at[k], b[d].at[k], start + (i + d * step) * size + k);
        }
    }
    for (i64 j = start + packs * size + threadIdx.x; j < n; j += step) f(row[j], other[j], j);
}

// to[j] = f(x[j], j), rounded.
template <class X, class F> __device__ inline void map(const X* row, X* to, i64 n, F f) {
    constexpr int size = Pack<X>::size;
    const int step = blockDim.x;
    i64 start = first_pack(row, (const X*)to, n), packs = (n - start) / size, i = threadIdx.x;
    for (i64 j = threadIdx.x; j < start; j += step) narrow(f(widen(row[j]), j), to[j]);
    for (; i < packs; i += DEPTH * step) {
        Pack<X> a[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (i + d * step < packs) a[d] = load_pack(row + start + (i + d * step) * size);
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            i64 at = start + (i + d * step) * size;
            if (i + d * step >= packs) continue;
#pragma unroll
            for (int k = 0; k < size; k++) narrow(f(widen(a[d].at[k]), at + k), a[d].at[k]);
            store_pack(to + at, a[d]);
        }
    }
    for (i64 j = start + packs * size + threadIdx.x; j < n; j += step)
        narrow(f(widen(row[j]), j), to[j]);
}

// to[j] = f(x[j], y[j], j), rounded.
template <class X, class F>
__device__ inline void map(const X* row, const X* other, X* to, i64 n, F f) {
    constexpr int size = Pack<X>::size, deep = DEPTH / 2;
    const int step = blockDim.x;
    i64 start = first_pack(row, (const X*)to, n), i = threadIdx.x;
    if (first_pack(row, other, n) != start) start = n;
    i64 packs = (n - start) / size;
    for (i64 j = threadIdx.x; j < start; j += step)
        narrow(f(widen(row[j]), widen(other[j]), j), to[j]);
    for (; i < packs; i += deep * step) {
        Pack<X> a[deep], b[deep];
#pragma unroll
        for (int d = 0; d < deep; d++) {
            if (i + d * step >= packs) continue;
            a[d] = load_pack(row + start + (i + d * step) * size);
            b[d] = load_pack(other + start + (i + d * step) * size);
        }
#pragma unroll
        for (int d = 0; d < deep; d++) {
            i64 at = start + (i + d * step) * size;
            if (i + d * step >= packs) continue;
#pragma unroll
            for (int k = 0; k < size; k++)
                narrow(f(widen(a[d].at[k]), widen(b[d].at[k]), at + k), a[d].at[k]);
            store_pack(to + at, a[d]);
        }
    }
    for (i64 j = start + packs * size + threadIdx.x; j < n; j += step)
        narrow(f(widen(row[j]), widen(other[j]), j), to[j]);
}

// --- rows in registers ---------------------------------------------------------------------------

// A row that is short enough is read once: its threads hold up to HELD packs each.
static constexpr int HELD = 4;

template <class X> __device__ inline bool is_held(i64 n, const void* a, const void* b) {
    return n % Pack<X>::size == 0 && n / Pack<X>::size <= HELD * blockDim.x && aligned(a) &&
           aligned(b);
}

// f(h, pack) for each pack that this thread holds of a row.
template <class F> __device__ inline void held(int packs, F f) {
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        int pack = threadIdx.x + h * blockDim.x;
        if (pack < packs) f(h, pack);
    }
}

// The sum of the values of the threads of a column, in all of them.
template <class X> __device__ inline X column_sum(X x) {
    __shared__ X parts[THREADS];
    if (blockDim.y == 1) return x;
    __syncthreads();
    parts[threadIdx.y * blockDim.x + threadIdx.x] = x;
    __syncthreads();
    X total = X(0);
    for (int y = 0; y < blockDim.y; y++) total += parts[y * blockDim.x + threadIdx.x];
    return total;
}

// Which column of (outer, n, inner) a block's thread has in its `item`-th turn.
struct Column {
    i64 outer, inside;
    bool valid;
};
__device__ inline i64 column_items(i64 outer, i64 inner) {
    return outer * ((inner + blockDim.x - 1) / blockDim.x);
}
__device__ inline Column column_of(i64 item, i64 inner) {
    i64 blocks = (inner + blockDim.x - 1) / blockDim.x;
    Column c;
    c.outer = item / blocks;
    c.inside = item % blocks * blockDim.x + threadIdx.x;
    c.valid = c.inside < inner;
    return c;
}
