// Arithmetic with broadcasting, choice by masks.
#include "each.cuh"

// --- arithmetic ----------------------------------------------------------------------------------

// How a smaller y goes with x: in each block of x a vector of `size` elements, of which each serves
// `inner` neighbours, over and over. The same shape is inner 1 and size n, a number in `number`.
template <class I> struct Places {
    I block, inner, size;
    bool whole;  // one block

    __device__ I operator()(I i) const {
        I at = i / inner % size;
        return whole ? at : i / block * size + at;
    }
};

template <class I, class F>
__device__ inline void broadcast(const T* x, const T* y, T* out, I n, Places<I> place, F f) {
    constexpr int W_ = Pack<T>::size;
    I first = (I)thread_index(), step = (I)thread_count(), done = 0;
    bool by_row = place.inner == 1 && place.size % W_ == 0 && aligned(y);
    bool by_one = place.inner % W_ == 0;
    if (aligned(x) && aligned(out) && (by_row || by_one)) {
        I packs = n / W_;
        for (I i = first; i < packs; i += step) {
            Pack<T> a = load_pack(x + i * W_), b, r;
            const T* beside = y + place(i * W_);
            if (by_row) {
                b = load_pack(beside);
            } else {
#pragma unroll
                for (int k = 0; k < W_; k++) b.at[k] = *beside;
            }
#pragma unroll
            for (int k = 0; k < W_; k++) narrow(f(widen(a.at[k]), widen(b.at[k])), r.at[k]);
            store_pack(out + i * W_, r);
        }
        done = packs * W_;
    }
    for (I i = done + first; i < n; i += step)
        narrow(f(widen(x[i]), widen(y[place(i)])), out[i]);
}

template <class I, class F>
__device__ inline void broadcast(const T* x, const T* y, T* out, i64 n, i64 block, i64 inner,
                                 i64 size, F f) {
    broadcast<I>(x, y, out, (I)n, Places<I>{(I)block, (I)inner, (I)size, block >= n}, f);
}

template <class F>
__device__ inline void operate(const T* x, const T* y, T* out, i64 n, i64 block, i64 inner,
                               i64 size, double number, F f) {
    if (y == nullptr) {
        A value = widen(rounded<T>((A)number));
        each(x, out, n, [=](A a) -> A { return f(a, value); });
    } else if (size == n && inner == 1) {
        each(x, y, out, n, f);
    } else if (n + thread_count() * Pack<T>::size < (i64)1 << 31) {  // 32-bit divisions are fast
        broadcast<u32>(x, y, out, n, block, inner, size, f);
    } else {
        broadcast<u64>(x, y, out, n, block, inner, size, f);
    }
}

#define OPERATION(name, expression)                                                              \
    KERNEL name(const T* x, const T* y, T* out, i64 n, i64 block, i64 inner, i64 size,           \
                double number) {                                                                 \
        operate(x, y, out, n, block, inner, size, number,                                        \
                [](A a, A b) -> A { return expression; });                                       \
    }

OPERATION(add, a + b)
OPERATION(subtract, a - b)
OPERATION(multiply, a* b)
OPERATION(true_divide, a / b)
OPERATION(subtract_from, b - a)
OPERATION(divide_into, b / a)

// --- choice --------------------------------------------------------------------------------------

KERNEL mask(const Bool* kept, const T* x, T* out, i64 n) {
    T zero = rounded<T>(A(0));
    each_masked(kept, x, out, n, [=](bool keep, T value, i64) { return keep ? value : zero; });
}

// x where the condition holds, y elsewhere; a step of 0 means the same number everywhere.
KERNEL select_(const Bool* condition, const T* x, const T* y, T* out, i64 n, i64 x_step,
              i64 y_step) {
    if (x_step) {
        each_masked(condition, x, out, n,
                    [=](bool first, T value, i64 i) { return first ? value : y[i * y_step]; });
    } else {
        each_masked(condition, y, out, n,
                    [=](bool first, T value, i64) { return first ? x[0] : value; });
    }
}

// x scaled where it was kept, x times 0 elsewhere: NaN stays NaN.
KERNEL scale_kept(const Bool* kept, const T* x, T* out, i64 n, double scale) {
    A factor = (A)scale;
    each_masked(kept, x, out, n, [=](bool keep, T value, i64) {
        return rounded<T>(widen(value) * (keep ? factor : A(0)));
    });
}
