// Normalization of rows: one mean and variance for each, weight and bias along it.
//
// With s = 1/√(σ² + ε), h = g · weight, and the gradients of mean and variance:
//     dx = s h + (x - μ) a + b,       a = (2 g_var - s³ Σ h (x - μ)) / n,  b = (g_mean - s Σ h) / n
#include "rows.cuh"

typedef TYPE_0 T;
typedef TYPE_1 W;  // of weight and bias
typedef Acc<T>::type A;

__device__ inline A inverse_root(A var, double eps) { return A(1) / sqrt(var + (A)eps); }

KERNEL normalize_rows(const T* x, const W* weight, const W* bias, A* mean, A* var, T* out,
                      i64 rows, i64 n, double eps, i64 centred) {
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T* from = x + row * n;
        A middle = A(0), spread = A(0);
        if (centred) {
            over(from, n, [&](T value, i64) { middle += widen(value); });
            middle = row_sum(middle) / (A)n;
        }
        over(from, n, [&](T value, i64) {
            A away = widen(value) - middle;
            spread += away * away;
        });
        spread = row_sum(spread) / (A)n;
        A scale = inverse_root(spread, eps);
        if (threadIdx.x == 0) {
            mean[row] = middle;
            var[row] = spread;
        }
        map(from, out + row * n, n, [&](A value, i64 j) {
            A result = (value - middle) * scale;
            if (weight) result *= (A)widen(weight[j]);
            if (bias) result += (A)widen(bias[j]);
            return result;
        });
    }
}

// A step of 0 means that one number stands for all rows, and no gradient of mean or variance 0.
KERNEL normalize_rows_back(const T* g, const T* x, const W* weight, const A* mean, const A* var,
                           const A* g_mean, i64 mean_step, const A* g_var, i64 var_step, T* dx,
                           i64 rows, i64 n, double eps, i64 centred) {
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T *grad = g + row * n, *from = x + row * n;
        A middle = mean[row], scale = inverse_root(var[row], eps), sum = A(0), dot = A(0);
        over(grad, from, n, [&](T a, T b, i64 j) {
            A h = widen(a);
            if (weight) h *= (A)widen(weight[j]);
            sum += h;
            dot += h * (widen(b) - middle);
        });
        Pair<A> both = row_sums(sum, dot);
        A of_var = g_var ? A(2) * g_var[row * var_step] : A(0);
        A of_mean = g_mean ? g_mean[row * mean_step] : A(0);
        A slope = (of_var - scale * scale * scale * both.second) / (A)n;
        A shift = centred ? (of_mean - scale * both.first) / (A)n : A(0);
        map(grad, from, dx + row * n, n, [&](A a, A b, i64 j) {
            A h = weight ? a * (A)widen(weight[j]) : a;
            return scale * h + (b - middle) * slope + shift;
        });
    }
}

// Of weight and bias: dw[part][j] = Σ g x̂ and db[part][j] = Σ g over the part's rows.
KERNEL normalize_affine_back(const T* g, const T* x, const A* mean, const A* var, A* dw, A* db,
                             i64 rows, i64 n, i64 parts, i64 length, double eps) {
    for (i64 item = blockIdx.x; item < column_items(parts, n); item += gridDim.x) {
        Column c = column_of(item, n);
        i64 start = c.outer * length, stop = start + length < rows ? start + length : rows;
        A sum = A(0), dot = A(0);
        if (c.valid) {
            for (i64 row = start + threadIdx.y; row < stop; row += blockDim.y) {
                A grad = widen(g[row * n + c.inside]);
                sum += grad;
                dot += grad * (widen(x[row * n + c.inside]) - mean[row]) *
                       inverse_root(var[row], eps);
            }
        }
        sum = column_sum(sum);
        dot = column_sum(dot);
        if (c.valid && threadIdx.y == 0) {
            dw[c.outer * n + c.inside] = dot;
            db[c.outer * n + c.inside] = sum;
        }
    }
}
