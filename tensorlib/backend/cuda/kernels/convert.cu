// Conversion between floating types, and sums across them, as many elements at a time as the narrower
// of the two has in 16 bytes.
#include "common.cuh"

typedef TYPE_0 T;
typedef TYPE_1 W;  // the result's

static constexpr int SIZE = Pack<T>::size > Pack<W>::size ? Pack<T>::size : Pack<W>::size;

template <class X> struct alignas(16) Run {
    Pack<X> packs[SIZE / Pack<X>::size];
};
template <class X> __device__ inline Run<X> load_run(const X* from) {
    Run<X> run;
#pragma unroll
    for (int p = 0; p < SIZE / Pack<X>::size; p++)
        run.packs[p] = load_pack(from + p * Pack<X>::size);
    return run;
}
template <class X> __device__ inline X& at(Run<X>& run, int k) {
    return run.packs[k / Pack<X>::size].at[k % Pack<X>::size];
}
__device__ inline void store_run(W* to, const Run<W>& run) {
#pragma unroll
    for (int p = 0; p < SIZE / Pack<W>::size; p++)
        store_pack(to + p * Pack<W>::size, run.packs[p]);
}

KERNEL convert(const T* x, W* out, i64 n) {
    i64 first = thread_index(), step = thread_count(), done = 0;
    if (aligned(x) && aligned(out)) {
        for (i64 i = first; i < n / SIZE; i += step) {
            Run<T> a = load_run(x + i * SIZE);
            Run<W> r;
#pragma unroll
            for (int k = 0; k < SIZE; k++) narrow(widen(at(a, k)), at(r, k));
            store_run(out + i * SIZE, r);
        }
        done = n / SIZE * SIZE;
    }
    for (i64 i = done + first; i < n; i += step) narrow(widen(x[i]), out[i]);
}

// out = y + x, of which y has the result's type.
KERNEL add_converted(const T* x, const W* y, W* out, i64 n) {
    typedef Acc<W>::type A;
    i64 first = thread_index(), step = thread_count(), done = 0;
    if (aligned(x) && aligned(y) && aligned(out)) {
        for (i64 i = first; i < n / SIZE; i += step) {
            Run<T> a = load_run(x + i * SIZE);
            Run<W> r = load_run(y + i * SIZE);
#pragma unroll
            for (int k = 0; k < SIZE; k++)
                narrow((A)widen(at(a, k)) + (A)widen(at(r, k)), at(r, k));
            store_run(out + i * SIZE, r);
        }
        done = n / SIZE * SIZE;
    }
    for (i64 i = done + first; i < n; i += step)
        narrow((A)widen(x[i]) + (A)widen(y[i]), out[i]);
}
