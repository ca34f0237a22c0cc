// Losses of pairs of elements: their sum without temporaries, and the gradient in one pass.
//
// Each has a value f(x, y) and the slope ∂f/∂x; p is β of the smooth L1 loss and δ of Huber's.
#include "rows.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

__device__ inline A sign_of(A d) { return d > A(0) ? A(1) : (d < A(0) ? A(-1) : d * A(0)); }
__device__ inline A larger(A a, A b) { return a < b ? b : a; }

// sums[part] = Σ f over the part's elements; or each f.
template <class F>
__device__ inline void value_of(const T* x, const T* y, T* out, A* sums, i64 n, i64 length, F f) {
    if (!sums) {
        for (i64 i = thread_index(); i < n; i += thread_count())
            narrow(f(widen(x[i]), widen(y[i])), out[i]);
        return;
    }
    for (i64 part = blockIdx.x; part * length < n; part += gridDim.x) {
        i64 start = part * length, count = n - start < length ? n - start : length;
        A total = A(0);
        over(x + start, y + start, count, [&](T a, T b, i64) { total += f(widen(a), widen(b)); });
        total = block_sum(total);
        if (threadIdx.x == 0) sums[part] = total;
    }
}

template <class F>
__device__ inline void slope_of(const T* g, i64 g_step, const T* x, const T* y, T* dx, i64 n,
                                double scale, F f) {
    for (i64 i = thread_index(); i < n; i += thread_count())
        narrow(f(widen(x[i]), widen(y[i])) * (widen(g[i * g_step]) * (A)scale), dx[i]);
}

#define LOSS(name, VALUE, SLOPE)                                                                 \
    KERNEL name(const T* x_, const T* y_, T* out, A* sums, i64 n, i64 length, double p_) {       \
        A p = (A)p_;                                                                             \
        (void)p;                                                                                 \
        value_of(x_, y_, out, sums, n, length, [=](A x, A y) -> A { VALUE });                    \
    }                                                                                            \
    KERNEL name##_back(const T* g, i64 g_step, const T* x_, const T* y_, T* dx, i64 n,           \
                       double scale, double p_) {                                                \
        A p = (A)p_;                                                                             \
        (void)p;                                                                                 \
        slope_of(g, g_step, x_, y_, dx, n, scale, [=](A x, A y) -> A { SLOPE });                 \
    }

LOSS(mse, return (x - y) * (x - y);, return A(2) * (x - y);)
LOSS(l1, return abs(x - y);, return x > y ? A(1) : (x < y ? A(-1) : A(0));)
LOSS(smooth_l1,
     A d = abs(x - y);
     return d < p ? d * d * (A(0.5) / p) : d - A(0.5) * p;,
     A d = x - y;
     return abs(d) < p ? d / p : sign_of(d);)
LOSS(huber,
     A d = abs(x - y);
     return d <= p ? d * d * A(0.5) : (d - A(0.5) * p) * p;,
     A d = x - y;
     return abs(d) <= p ? d : sign_of(d) * p;)
LOSS(binary_cross_entropy_with_logits,
     return (A(1) - y) * x + ((x < A(0) ? -x : A(0)) + log1p(exp(-abs(x))));,
     return A(1) / (A(1) + exp(-x)) - y;)
LOSS(binary_cross_entropy,
     return (y - A(1)) * larger(log1p(-x), A(-100)) - y * larger(log(x), A(-100));,
     return (x - y) / larger(x * (A(1) - x), A(1e-12));)
LOSS(kl_div,
     return (y > A(0) ? y * log(y) : (y == A(0) ? A(0) : A(CLEAR_NAN))) - y * x;, return -y;)
LOSS(kl_div_log, return exp(y) * (y - x);, return -exp(y);)

// out = scale Σ x, in one block.
KERNEL scaled_sum(const A* x, T* out, i64 n, double scale) {
    A sum = A(0);
    over(x, n, [&](A value, i64) { sum += value; });
    sum = block_sum(sum);
    if (threadIdx.x == 0) narrow(sum * (A)scale, out[0]);
}
