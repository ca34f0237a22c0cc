// One function of corresponding elements: 16 bytes at a time where all arrays are aligned.
#pragma once
#include "common.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;
typedef unsigned char Bool;

// out[i] = f(x[i]) of T, with the arithmetic in A.
template <class F> __device__ inline void each(const T* x, T* out, i64 n, F f) {
    i64 first = thread_index(), step = thread_count(), done = 0;
    if (aligned(x) && aligned(out)) {
        i64 packs = n / Pack<T>::size;
        for (i64 i = first; i < packs; i += step) {
            Pack<T> a = load_pack(x + i * Pack<T>::size), r;
#pragma unroll
            for (int k = 0; k < Pack<T>::size; k++) narrow(f(widen(a.at[k])), r.at[k]);
            store_pack(out + i * Pack<T>::size, r);
        }
        done = packs * Pack<T>::size;
    }
    for (i64 i = done + first; i < n; i += step) narrow(f(widen(x[i])), out[i]);
}

// out[i] = f(x[i], y[i]).
template <class F> __device__ inline void each(const T* x, const T* y, T* out, i64 n, F f) {
    i64 first = thread_index(), step = thread_count(), done = 0;
    if (aligned(x) && aligned(y) && aligned(out)) {
        i64 packs = n / Pack<T>::size;
        for (i64 i = first; i < packs; i += step) {
            Pack<T> a = load_pack(x + i * Pack<T>::size), b = load_pack(y + i * Pack<T>::size), r;
#pragma unroll
            for (int k = 0; k < Pack<T>::size; k++)
                narrow(f(widen(a.at[k]), widen(b.at[k])), r.at[k]);
            store_pack(out + i * Pack<T>::size, r);
        }
        done = packs * Pack<T>::size;
    }
    for (i64 i = done + first; i < n; i += step) narrow(f(widen(x[i]), widen(y[i])), out[i]);
}

// As many bytes of a mask as there are elements in 16 bytes of T.
struct alignas(Pack<T>::size) Mask {
    Bool at[Pack<T>::size];
};

// out[i] = f(mask[i], x[i], i).
template <class F>
__device__ inline void each_masked(const Bool* mask, const T* x, T* out, i64 n, F f) {
    i64 first = thread_index(), step = thread_count(), done = 0;
    if (aligned(x) && aligned(out) && aligned(mask)) {
        i64 packs = n / Pack<T>::size;
        for (i64 i = first; i < packs; i += step) {
            Pack<T> a = load_pack(x + i * Pack<T>::size), r;
            Mask m = *reinterpret_cast<const Mask*>(mask + i * Pack<T>::size);
#pragma unroll
            for (int k = 0; k < Pack<T>::size; k++)
                r.at[k] = f(m.at[k] != 0, a.at[k], i * Pack<T>::size + k);
            store_pack(out + i * Pack<T>::size, r);
        }
        done = packs * Pack<T>::size;
    }
    for (i64 i = done + first; i < n; i += step) out[i] = f(mask[i] != 0, x[i], i);
}
