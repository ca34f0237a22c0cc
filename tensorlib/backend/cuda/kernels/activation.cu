// Activations and their gradients, each in one pass.
//
// A gradient takes g, the output's, and the input or output that it is cheaper from. At infinities
// the functions are NaN exactly where their formulas in PyTorch are.
#include "each.cuh"

#define ONE(name, ...)                                                                           \
    KERNEL name(const T* x_, T* out, i64 n, double p, double q, double r) {                      \
        const A n0 = (A)p, n1 = (A)q, n2 = (A)r;                                                 \
        (void)n0, (void)n1, (void)n2;                                                            \
        each(x_, out, n, [=](A x) -> A { __VA_ARGS__ });                                         \
    }

#define TWO(name, second, ...)                                                                   \
    KERNEL name(const T* g_, const T* x_, T* out_, i64 n, double p, double q, double r) {        \
        const A n0 = (A)p, n1 = (A)q, n2 = (A)r;                                                 \
        (void)n0, (void)n1, (void)n2;                                                            \
        each(g_, x_, out_, n, [=](A g, A second) -> A { __VA_ARGS__ });                          \
    }

__device__ inline A sigmoid_of(A x) { return reciprocal<T>(A(1) + exponential<T>(-x)); }

// --- piecewise linear ----------------------------------------------------------------------------

ONE(relu, return x <= A(0) ? A(0) : x;)
TWO(relu_back, out, return out <= A(0) ? A(0) : g;)
ONE(leaky_relu, return x > A(0) ? x : x * n0;)
TWO(leaky_relu_back, x, return x > A(0) ? g : g * n0;)
TWO(hardtanh_back, x, return x > n0 && x < n1 ? g : A(0);)

__device__ inline A within_six(A y) { return y < A(0) ? A(0) : (y > A(6) ? A(6) : y); }

ONE(hardswish, return x * within_six(x + A(3)) * A(1.0 / 6);)
TWO(hardswish_back, x, {
    A slope = x >= A(3) ? A(1) : x * A(1.0 / 3) + A(0.5);
    return x <= A(-3) ? A(0) : g * slope;
})
ONE(hardsigmoid, return within_six(x + A(3)) * A(1.0 / 6);)
TWO(hardsigmoid_back, x, return x > A(-3) && x < A(3) ? g * A(1.0 / 6) : A(0);)

// --- exponential ---------------------------------------------------------------------------------

ONE(exponential, return exp(x);)
ONE(tanh_, return tanh(x);)
TWO(tanh_back, out, return g * (A(1) - out * out);)
ONE(erf_, return erf(x);)
ONE(sigmoid, return sigmoid_of(x);)
TWO(sigmoid_back, out, return g * (A(1) - out) * out;)

// alpha, scale, input_scale
ONE(elu, {
    A y = x * n2;
    return x > A(0) ? x * n1 : expm1(y > A(0) ? A(0) : y) * (n1 * n0);
})
TWO(elu_back, x, {
    A y = x * n2;
    return g * (x > A(0) ? n1 : exp(y > A(0) ? A(0) : y) * (n1 * n0 * n2));
})

// beta, threshold
ONE(softplus, {
    A y = x * n0;
    A out = (y > A(0) ? y : A(0)) + log1p(exp(-abs(y)));
    return y > n1 ? x : out * (A(1) / n0);
})
TWO(softplus_back, x, {
    A y = x * n0;
    return y > n1 ? g : g * sigmoid_of(y);
})

ONE(silu, return x * sigmoid_of(x);)
TWO(silu_back, x, {
    A s = sigmoid_of(x);
    return g * s * (A(1) + x * (A(1) - s));
})

// x tanh(log(1 + exp x)) = x n / d, where both are polynomials in s = exp(-|x|).
ONE(mish, {
    A s = exp(-abs(x));
    A n = x < A(0) ? s * (s + A(2)) : A(1) + A(2) * s;
    A d = n + (x < A(0) ? A(2) : A(2) * s * s);
    return x * (n / d);
})
TWO(mish_back, x, {
    A s = exp(-abs(x));
    A n = x < A(0) ? s * (s + A(2)) : A(1) + A(2) * s;
    A d = n + (x < A(0) ? A(2) : A(2) * s * s);
    A inverse = A(1) / d;
    A slope = A(4) * s * (A(1) + s) * (x < A(0) ? A(1) : s) * (inverse * inverse);
    return g * (n * inverse + x * slope);
})

// --- GELU ----------------------------------------------------------------------------------------

#define ROOT_HALF A(0.70710678118654752440)
#define DENSITY A(0.39894228040143267794)         // 1 / sqrt(2 pi)
#define LINEAR A(1.59576912160573071175)          // 2 sqrt(2 / pi)
#define CUBIC A(1.59576912160573071175 * 0.044715)  // Hendrycks & Gimpel 2016

// The probability below x of a normal number, given exp(-x² / 2). Of halves by Abramowitz & Stegun
// 7.1.26, whose error of 10⁻⁷ they do not show.
__device__ inline A normal_below(A x, A bell) {
    if (sizeof(T) > 2) return A(0.5) * (A(1) + erf(x * ROOT_HALF));
    A t = reciprocal<T>(A(1) + A(0.3275911 * 0.70710678118654752440) * abs(x));
    A sum = A(1.061405429) * t + A(-1.453152027);
    sum = sum * t + A(1.421413741);
    sum = sum * t + A(-0.284496736);
    sum = sum * t + A(0.254829592);
    A tail = A(0.5) * sum * t * bell;
    return x < A(0) ? tail : A(1) - tail;
}
__device__ inline A bell_of(A x) { return exponential<T>(A(-0.5) * x * x); }

ONE(gelu, return x * normal_below(x, sizeof(T) > 2 ? A(0) : bell_of(x));)
TWO(gelu_back, x, {
    A bell = bell_of(x);
    return g * (normal_below(x, bell) + x * (DENSITY * bell));
})

// x (1 + tanh u) / 2 = x sigmoid(2 u)
ONE(gelu_tanh, return x * sigmoid_of(x * (CUBIC * (x * x) + LINEAR));)
TWO(gelu_tanh_back, x, {
    A bend = CUBIC * (x * x);
    A s = sigmoid_of(x * (bend + LINEAR));
    return g * s * (A(1) + x * (A(1) - s) * (A(3) * bend + LINEAR));
})
