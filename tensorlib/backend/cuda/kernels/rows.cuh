// Rows and columns: who takes which, walking along them, and what their threads sum together.
//
// A row belongs to a warp where blocks are 32 wide (blockDim.y rows at a time), else to a block.
// Columns belong to threads: blockDim.x of them side by side, the rows shared by blockDim.y.
#pragma once
#define THREADS 1024
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

// Where the part of a row that goes by 16 bytes begins: few elements in, also where rows of an odd
// length lie at any address. At the end if `other`, which is walked along with it, lies differently.
template <class X> __device__ inline i64 first_pack(const X* row, i64 n) {
    i64 before = (i64)(-(u64)row & 15) / (i64)sizeof(X);
    return before < n ? before : n;
}
template <class X> __device__ inline i64 first_pack(const X* row, const X* other, i64 n) {
    return (((u64)row ^ (u64)other) & 15) == 0 ? first_pack(row, n) : n;
}

// f(x[j], j) for all j of a row that fall to this thread, the elements as they are stored.
template <class X, class F> __device__ inline void over(const X* row, i64 n, F f) {
    i64 start = first_pack(row, n), packs = (n - start) / Pack<X>::size;
    i64 done = start + packs * Pack<X>::size;
    for (i64 j = threadIdx.x; j < start; j += blockDim.x) f(row[j], j);
    for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
        i64 at = start + i * Pack<X>::size;
        Pack<X> a = load_pack(row + at);
#pragma unroll
        for (int k = 0; k < Pack<X>::size; k++) f(a.at[k], at + k);
    }
    for (i64 j = done + threadIdx.x; j < n; j += blockDim.x) f(row[j], j);
}

// The same for two rows at once: f(x[j], y[j], j).
template <class X, class F>
__device__ inline void over(const X* row, const X* other, i64 n, F f) {
    i64 start = first_pack(row, other, n), packs = (n - start) / Pack<X>::size;
    i64 done = start + packs * Pack<X>::size;
    for (i64 j = threadIdx.x; j < start; j += blockDim.x) f(row[j], other[j], j);
    for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
        i64 at = start + i * Pack<X>::size;
        Pack<X> a = load_pack(row + at), b = load_pack(other + at);
#pragma unroll
        for (int k = 0; k < Pack<X>::size; k++) f(a.at[k], b.at[k], at + k);
    }
    for (i64 j = done + threadIdx.x; j < n; j += blockDim.x) f(row[j], other[j], j);
}

// to[j] = f(x[j], j), rounded.
template <class X, class F> __device__ inline void map(const X* row, X* to, i64 n, F f) {
    i64 start = first_pack(row, (const X*)to, n), packs = (n - start) / Pack<X>::size;
    i64 done = start + packs * Pack<X>::size;
    for (i64 j = threadIdx.x; j < start; j += blockDim.x) narrow(f(widen(row[j]), j), to[j]);
    for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
        i64 at = start + i * Pack<X>::size;
        Pack<X> a = load_pack(row + at), r;
#pragma unroll
        for (int k = 0; k < Pack<X>::size; k++) narrow(f(widen(a.at[k]), at + k), r.at[k]);
        store_pack(to + at, r);
    }
    for (i64 j = done + threadIdx.x; j < n; j += blockDim.x) narrow(f(widen(row[j]), j), to[j]);
}

// to[j] = f(x[j], y[j], j), rounded.
template <class X, class F>
__device__ inline void map(const X* row, const X* other, X* to, i64 n, F f) {
    i64 start = first_pack(row, (const X*)to, n);
    if (first_pack(row, other, n) != start) start = n;
    i64 packs = (n - start) / Pack<X>::size, done = start + packs * Pack<X>::size;
    for (i64 j = threadIdx.x; j < start; j += blockDim.x)
        narrow(f(widen(row[j]), widen(other[j]), j), to[j]);
    for (i64 i = threadIdx.x; i < packs; i += blockDim.x) {
        i64 at = start + i * Pack<X>::size;
        Pack<X> a = load_pack(row + at), b = load_pack(other + at), r;
#pragma unroll
        for (int k = 0; k < Pack<X>::size; k++)
            narrow(f(widen(a.at[k]), widen(b.at[k]), at + k), r.at[k]);
        store_pack(to + at, r);
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
