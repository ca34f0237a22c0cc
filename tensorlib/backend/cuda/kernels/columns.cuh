// Columns of a matrix by 16 bytes: a thread has V of them side by side, down all of its rows.
//
//     a strip: blockDim.x threads, each with V neighbouring columns; the block's rows are shared by
//     its blockDim.y threads of a column; a part: the rows start ... stop that a block takes
//
// V is a pack's size, or 1 where rows are not whole packs. Where blockDim.y is not 1, blockDim.x is
// a power of 2 up to 32.
#pragma once
#include "common.cuh"

static constexpr int BLOCK = 256;  // threads of a block
static constexpr int DEEP = 4;     // packs that a thread has in flight, so that memory is kept busy

// V neighbours in memory, read and written at once.
template <int V, class X> struct alignas(V * sizeof(X) < 16 ? V * sizeof(X) : 16) Few {
    X at[V];
};
template <int V, class X> __device__ inline Few<V, X> load_few(const X* from) {
    if (V * sizeof(X) >= 16) CHECK_ALIGNED(from);
    return *reinterpret_cast<const Few<V, X>*>(from);
}
template <int V, class X> __device__ inline void store_few(X* to, const Few<V, X>& few) {
    constexpr int bytes = V * sizeof(X);
    if (bytes >= 16) CHECK_ALIGNED(to);
#ifndef EMULATED  // of an assignment NVRTC makes a store for each member
    if constexpr (bytes >= 4) {
        const u32* from = reinterpret_cast<const u32*>(&few);
        if constexpr (bytes == 4) {
            asm volatile("st.b32 [%0], %1;" ::"l"(to), "r"(from[0]) : "memory");
        } else if constexpr (bytes == 8) {
            asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(from[0]), "r"(from[1])
                         : "memory");
        } else {
#pragma unroll
            for (int i = 0; i < bytes / 4; i += 4)
                asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"((u32*)to + i), "r"(from[i]),
                             "r"(from[i + 1]), "r"(from[i + 2]), "r"(from[i + 3])
                             : "memory");
        }
        return;
    }
#endif
    *reinterpret_cast<Few<V, X>*>(to) = few;
}

template <int n> struct Count {
    static constexpr int value = n;
};

// f(Count<V>()), with V by whether rows of `columns` elements are whole packs of X.
template <class X, class F> __device__ inline void by_packs(bool aligned, i64 columns, F f) {
    if (aligned && columns % Pack<X>::size == 0) {
        f(Count<Pack<X>::size>());
    } else {
        f(Count<1>());
    }
}

// use(i, load(i)) for i from `start` up to `stop`, of which several are loaded before the first is
// used: a store between them would hold the next load back.
template <class Load, class Use>
__device__ inline void walk(i64 start, i64 stop, i64 step, Load load, Use use) {
    i64 i = start;
    for (; i + (DEEP - 1) * step < stop; i += DEEP * step) {
        decltype(load(i)) found[DEEP];
#pragma unroll
        for (int k = 0; k < DEEP; k++) found[k] = load(i + k * step);
#pragma unroll
        for (int k = 0; k < DEEP; k++) use(i + k * step, found[k]);
    }
    for (; i < stop; i += step) use(i, load(i));
}

// What a block has of (outer, rows, columns) in its `item`-th turn.
struct Strip {
    i64 outer, part, start, stop;  // its rows
    i64 first, column;             // its first column, and the thread's
    bool valid;                    // whether there is such a column
};
template <int V> __device__ inline i64 strips(i64 columns) {
    return (columns + V * blockDim.x - 1) / (V * blockDim.x);
}
template <int V>
__device__ inline Strip strip_of(i64 item, i64 rows, i64 columns, i64 parts, i64 length) {
    i64 across = strips<V>(columns);
    Strip s;
    s.first = item % across * V * blockDim.x;
    s.column = s.first + threadIdx.x * V;
    s.valid = s.column < columns;
    s.part = item / across % parts;
    s.outer = item / across / parts;
    s.start = s.part * length;
    s.stop = s.start + length < rows ? s.start + length : rows;
    return s;
}

// put(column, sum) for each column of a strip, of the values that a block's threads have of it.
template <int V, class X, class F>
__device__ inline void strip_sums(const X (&values)[V], const Strip& s, i64 columns, F put) {
    if (blockDim.y == 1) {
        if (s.valid)
            for (int k = 0; k < V; k++) put(s.column + k, values[k]);
        return;
    }
    __shared__ X parts[BLOCK / 32][32 * V];
    int thread = threadIdx.y * blockDim.x + threadIdx.x, lane = thread & 31, warp = thread >> 5;
    __syncthreads();  // the last call's readers are done
#pragma unroll
    for (int k = 0; k < V; k++) {
        X sum = values[k];
        for (int step = blockDim.x; step < 32; step <<= 1) sum += __shfl_xor_sync(FULL, sum, step);
        if (lane < blockDim.x) parts[warp][threadIdx.x * V + k] = sum;
    }
    __syncthreads();
    for (int i = thread; i < blockDim.x * V && s.first + i < columns; i += BLOCK) {
        X total = X(0);
        for (int w = 0; w < BLOCK / 32; w++) total += parts[w][i];
        put(s.first + i, total);
    }
}
