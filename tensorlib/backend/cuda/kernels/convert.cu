// Conversion between floating types, as many elements at a time as both have in 16 bytes.
#include "common.cuh"

typedef TYPE_0 T;
typedef TYPE_1 W;  // the result's

KERNEL convert(const T* x, W* out, i64 n) {
    constexpr int W_ = Pack<T>::size < Pack<W>::size ? Pack<T>::size : Pack<W>::size;
    struct alignas(W_ * sizeof(T)) From {
        T at[W_];
    };
    struct alignas(W_ * sizeof(W)) To {
        W at[W_];
    };
    i64 first = thread_index(), step = thread_count(), done = 0;
    if (aligned(x) && aligned(out)) {
        i64 packs = n / W_;
        for (i64 i = first; i < packs; i += step) {
            From a = reinterpret_cast<const From*>(x)[i];
            To r;
#pragma unroll
            for (int k = 0; k < W_; k++) narrow(widen(a.at[k]), r.at[k]);
            reinterpret_cast<To*>(out)[i] = r;
        }
        done = packs * W_;
    }
    for (i64 i = done + first; i < n; i += step) narrow(widen(x[i]), out[i]);
}
