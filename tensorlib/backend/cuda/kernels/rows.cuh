// Rows and columns: who takes which, walking along them, and what their threads sum together.
//
// A row belongs to a warp where blocks are 32 wide (blockDim.y rows at a time), else to a block.
// Columns belong to threads: blockDim.x of them side by side, the rows shared by blockDim.y.
#pragma once
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

// f(x[j], j) for all j of a row that fall to this thread, the elements as they are stored.
template <class X, class F> __device__ inline void over(const X* row, i64 n, F f) {
    i64 done = 0;
    if (aligned(row)) {
        i64 packs = n / Pack<X>::size;
        for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
            Pack<X> a = load_pack(row + i * Pack<X>::size);
#pragma unroll
            for (int k = 0; k < Pack<X>::size; k++) f(a.at[k], i * Pack<X>::size + k);
        }
        done = packs * Pack<X>::size;
    }
    for (i64 j = done + threadIdx.x; j < n; j += blockDim.x) f(row[j], j);
}

// The same for two rows at once: f(x[j], y[j], j).
template <class X, class F>
__device__ inline void over(const X* row, const X* other, i64 n, F f) {
    i64 done = 0;
    if (aligned(row) && aligned(other)) {
        i64 packs = n / Pack<X>::size;
        for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
            Pack<X> a = load_pack(row + i * Pack<X>::size);
            Pack<X> b = load_pack(other + i * Pack<X>::size);
#pragma unroll
            for (int k = 0; k < Pack<X>::size; k++) f(a.at[k], b.at[k], i * Pack<X>::size + k);
        }
        done = packs * Pack<X>::size;
    }
    for (i64 j = done + threadIdx.x; j < n; j += blockDim.x) f(row[j], other[j], j);
}

// to[j] = f(x[j], j), rounded.
template <class X, class F> __device__ inline void map(const X* row, X* to, i64 n, F f) {
    i64 done = 0;
    if (aligned(row) && aligned(to)) {
        i64 packs = n / Pack<X>::size;
        for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
            Pack<X> a = load_pack(row + i * Pack<X>::size), r;
#pragma unroll
            for (int k = 0; k < Pack<X>::size; k++)
                narrow(f(widen(a.at[k]), i * Pack<X>::size + k), r.at[k]);
            store_pack(to + i * Pack<X>::size, r);
        }
        done = packs * Pack<X>::size;
    }
    for (i64 j = done + threadIdx.x; j < n; j += blockDim.x) narrow(f(widen(row[j]), j), to[j]);
}

// to[j] = f(x[j], y[j], j), rounded.
template <class X, class F>
__device__ inline void map(const X* row, const X* other, X* to, i64 n, F f) {
    i64 done = 0;
    if (aligned(row) && aligned(other) && aligned(to)) {
        i64 packs = n / Pack<X>::size;
        for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
            Pack<X> a = load_pack(row + i * Pack<X>::size), r;
            Pack<X> b = load_pack(other + i * Pack<X>::size);
#pragma unroll
            for (int k = 0; k < Pack<X>::size; k++)
                narrow(f(widen(a.at[k]), widen(b.at[k]), i * Pack<X>::size + k), r.at[k]);
            store_pack(to + i * Pack<X>::size, r);
        }
        done = packs * Pack<X>::size;
    }
    for (i64 j = done + threadIdx.x; j < n; j += blockDim.x)
        narrow(f(widen(row[j]), widen(other[j]), j), to[j]);
}

// The sum of the values of the threads of a column, in all of them; blocks of up to 1024 threads.
template <class X> __device__ inline X column_sum(X x) {
    __shared__ X parts[1024];
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
