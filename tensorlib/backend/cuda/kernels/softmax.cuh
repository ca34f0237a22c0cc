// The maximum of numbers and the sum of their exponentials, in one pass (Milakov & Gimelshein 2018).
#pragma once
#include "rows.cuh"

// sum = Σ exp(x - top); numbers join one by one, or as packs, or two of these join.
template <class X> struct Online {
    X top, sum;

    __device__ Online() : top(-INFINITY_F), sum(0) {}
    __device__ void add(X x) {
        if (x > top) {
            sum = sum * exp(top - x) + X(1);
            top = x;
        } else {
            sum += x == top ? X(1) : exp(x - top);
        }
    }
    template <class T> __device__ void add(const Pack<T>& pack) {
        X most = top;
#pragma unroll
        for (int k = 0; k < Pack<T>::size; k++) {
            X x = widen(pack.at[k]);
            most = x > most ? x : most;
        }
        if (most > top) {
            sum *= exponential<T>(top - most);
            top = most;
        }
        X from = top == -INFINITY_F ? X(0) : top;  // nothing but -∞ so far
#pragma unroll
        for (int k = 0; k < Pack<T>::size; k++) sum += exponential<T>(widen(pack.at[k]) - from);
    }
    __device__ void join(X other_top, X other_sum) {
        X most = other_top > top ? other_top : top;
        sum = (top == most ? sum : sum * exp(top - most)) +
              (other_top == most ? other_sum : other_sum * exp(other_top - most));
        top = most;
    }
    // Where the largest is infinite, everything is NaN (∞ - ∞), as in torch.
    __device__ void finish() {
        if (top - top != X(0)) sum = CLEAR_NAN;
    }
    __device__ X total() const { return top + log(sum); }
};

template <class X> __device__ inline Online<X> warp_join(Online<X> a) {
    for (int step = 16; step; step >>= 1) {
        X top = __shfl_xor_sync(FULL, a.top, step), sum = __shfl_xor_sync(FULL, a.sum, step);
        a.join(top, sum);
    }
    return a;
}

// Of the row's threads, in all of them.
template <class X> __device__ inline Online<X> row_join(Online<X> a) {
    __shared__ X tops[32], sums[32];
    a = warp_join(a);
    if (blockDim.x > 32) {
        int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
        __syncthreads();
        if (lane == 0) {
            tops[warp] = a.top;
            sums[warp] = a.sum;
        }
        __syncthreads();
        a = Online<X>();
        if (lane < warps) {
            a.top = tops[lane];
            a.sum = sums[lane];
        }
        a = warp_join(a);
    }
    a.finish();
    return a;
}

// Of the column's threads, in all of them.
template <class X> __device__ inline Online<X> column_join(Online<X> a) {
    __shared__ X tops[THREADS], sums[THREADS];
    if (blockDim.y > 1) {
        int mine = threadIdx.y * blockDim.x + threadIdx.x;
        __syncthreads();
        tops[mine] = a.top;
        sums[mine] = a.sum;
        __syncthreads();
        a = Online<X>();
        for (int y = 0; y < blockDim.y; y++)
            a.join(tops[y * blockDim.x + threadIdx.x], sums[y * blockDim.x + threadIdx.x]);
    }
    a.finish();
    return a;
}
