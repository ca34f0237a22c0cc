// Normalization of rows: one mean and variance for each, weight and bias along it.
//
// With s = 1/√(σ² + ε), h = g · weight, and the gradients of mean and variance:
//     dx = s h + (x - μ) a + b,       a = (2 g_var - s³ Σ h (x - μ)) / n,  b = (g_mean - s Σ h) / n
//
// Rows that fit into a block with 16 bytes for each thread, and lie at multiples of 16, go several at
// a time: a thread has the same columns of all rows, so that weights, and the sums of their
// gradients, stay in its registers.
#include "rows.cuh"

typedef TYPE_0 T;
typedef TYPE_1 W;  // of weight and bias
typedef TYPE_2 G;  // of the output's gradient
typedef Acc<T>::type A;

static constexpr int SIZE = Pack<T>::size, TOGETHER = 4, BACK = SIZE == 8 ? 1 : 2;  // rows

__device__ inline float inverse_root(float var, double eps) { return rsqrtf(var + (float)eps); }
__device__ inline double inverse_root(double var, double eps) { return 1.0 / sqrt(var + eps); }

// SIZE neighbours of any type.
template <class X> struct alignas(SIZE * sizeof(X) < 16 ? SIZE * sizeof(X) : 16) Part {
    X at[SIZE];
};
template <class X> __device__ inline Part<X> load_part(const X* from) {
    return *reinterpret_cast<const Part<X>*>(from);
}

// Sums over the threads of a row, of N numbers of each; blocks may have rows side by side, along y.
// Calls alternate between places in `shared`.
template <int N> __device__ inline void sums_together(A (&x)[N], A (*shared)[N]) {
    const int warps = blockDim.x >> 5, first = threadIdx.y * warps, lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(x[i]);
    if (lane == 0)
#pragma unroll
        for (int i = 0; i < N; i++) shared[first + (threadIdx.x >> 5)][i] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = A(0);
    for (int w = 0; w < warps; w++)
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += shared[first + w][i];
}

// Weights (1 where there are none) or biases (0) of this thread's columns.
__device__ inline void load_columns(const W* from, A none, int column, bool mine, A (&to)[SIZE]) {
#pragma unroll
    for (int k = 0; k < SIZE; k++) to[k] = from && mine ? (A)widen(from[column + k]) : none;
}

KERNEL normalize_together(const T* x, const W* weight, const W* bias, A* mean, A* var, T* out,
                          i64 rows, i64 n, double eps, i64 centred) {
    __shared__ A means[THREADS / 32][TOGETHER], vars[THREADS / 32][TOGETHER];
    const int column = threadIdx.x * SIZE;
    const bool mine = column < n;
    const A share = A(1) / (A)n;
    A scales[SIZE], shifts[SIZE];
    load_columns(weight, A(1), column, mine, scales);
    load_columns(bias, A(0), column, mine, shifts);
    const i64 step = (i64)gridDim.x * blockDim.y * TOGETHER;
    for (i64 start = (i64)blockIdx.x * blockDim.y * TOGETHER; start < rows; start += step) {
        const i64 first = start + threadIdx.y * TOGETHER;  // the block's threads walk in step
        Pack<T> given[TOGETHER];
        A middle[TOGETHER], spread[TOGETHER];
#pragma unroll
        for (int r = 0; r < TOGETHER; r++)
            if (mine && first + r < rows) given[r] = load_pack(x + (first + r) * n + column);
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            middle[r] = A(0);
            if (mine && first + r < rows)
#pragma unroll
                for (int k = 0; k < SIZE; k++) middle[r] += widen(given[r].at[k]);
        }
        if (centred)
            sums_together(middle, means);
        else
            __syncthreads();  // as many barriers as calls
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            middle[r] = centred ? middle[r] * share : A(0);
            spread[r] = A(0);
            if (mine && first + r < rows)
#pragma unroll
                for (int k = 0; k < SIZE; k++) {
                    A away = widen(given[r].at[k]) - middle[r];
                    spread[r] += away * away;
                }
        }
        sums_together(spread, vars);
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            if (first + r >= rows) continue;
            A variance = spread[r] * share, scale = inverse_root(variance, eps);
            if (threadIdx.x == 0) {
                mean[first + r] = middle[r];
                var[first + r] = variance;
            }
            if (!mine) continue;
#pragma unroll
            for (int k = 0; k < SIZE; k++)
                narrow((widen(given[r].at[k]) - middle[r]) * scale * scales[k] + shifts[k],
                       given[r].at[k]);
            store_pack(out + (first + r) * n + column, given[r]);
        }
    }
}

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

// --- backward ------------------------------------------------------------------------------------

// What is the same for all columns of a row: dx = scale h + (x - middle) slope + shift.
struct Line {
    A middle, scale, slope, shift;
};

// What a row's gradient takes besides that of the output. A step of 0 means that one number stands
// for all rows, and no gradient of mean or variance 0.
struct Given {
    const A *mean, *var, *g_mean, *g_var;
    i64 mean_step, var_step;
};

__device__ inline Line line_of(const Given& given, i64 row, A sum, A dot, i64 n, double eps,
                               bool centred) {
    const A share = A(1) / (A)n;
    Line line;
    line.middle = given.mean[row];
    line.scale = inverse_root(given.var[row], eps);
    A of_var = given.g_var ? A(2) * given.g_var[row * given.var_step] : A(0);
    A of_mean = given.g_mean ? given.g_mean[row * given.mean_step] : A(0);
    line.slope = (of_var - line.scale * line.scale * line.scale * dot) * share;
    line.shift = centred ? (of_mean - line.scale * sum) * share : A(0);
    return line;
}

// dx, to which `added` is added, and partial sums of the gradients of weight and bias, if they are
// wanted: sums[block] = (dw, db).
KERNEL normalize_together_back(const G* g, const T* x, const W* weight, const A* mean,
                               const A* var, const A* g_mean, i64 mean_step, const A* g_var,
                               i64 var_step, const T* added, T* dx, A* sums, i64 rows, i64 n,
                               double eps, i64 centred) {
    __shared__ A shared[2][THREADS / 32][2 * BACK];
    const Given given = {mean, var, g_mean, g_var, mean_step, var_step};
    const int column = threadIdx.x * SIZE;
    const bool mine = column < n;
    A weights[SIZE], dw[SIZE], db[SIZE];
    load_columns(weight, A(1), column, mine, weights);
#pragma unroll
    for (int k = 0; k < SIZE; k++) dw[k] = db[k] = A(0);
    int turn = 0;
    const i64 step = (i64)gridDim.x * blockDim.y * BACK;
    for (i64 start = (i64)blockIdx.x * blockDim.y * BACK; start < rows; start += step, turn ^= 1) {
        const i64 first = start + threadIdx.y * BACK;
        Part<G> grads[BACK];
        Pack<T> inputs[BACK], more[BACK];
        A both[2 * BACK];  // Σ h and Σ h (x - μ) of each row
#pragma unroll
        for (int r = 0; r < BACK; r++) {
            i64 at = (first + r) * n + column;
            if (!mine || first + r >= rows) continue;
            grads[r] = load_part(g + at);
            inputs[r] = load_pack(x + at);
            if (added) more[r] = load_pack(added + at);
        }
#pragma unroll
        for (int r = 0; r < BACK; r++) {
            A sum = A(0), dot = A(0);
            if (mine && first + r < rows) {
                A middle = mean[first + r];
#pragma unroll
                for (int k = 0; k < SIZE; k++) {
                    A h = (A)widen(grads[r].at[k]) * weights[k];
                    sum += h;
                    dot += h * (widen(inputs[r].at[k]) - middle);
                }
            }
            both[2 * r] = sum;
            both[2 * r + 1] = dot;
        }
        sums_together(both, shared[turn]);
#pragma unroll
        for (int r = 0; r < BACK; r++) {
            i64 row = first + r;
            if (row >= rows || !mine) continue;
            Line line = line_of(given, row, both[2 * r], both[2 * r + 1], n, eps, centred);
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                A grad = widen(grads[r].at[k]), away = widen(inputs[r].at[k]) - line.middle;
                dw[k] += grad * (away * line.scale);
                db[k] += grad;
                A found = line.scale * (grad * weights[k]) + away * line.slope + line.shift;
                if (added) found += widen(more[r].at[k]);
                narrow(found, inputs[r].at[k]);
            }
            store_pack(dx + row * n + column, inputs[r]);
        }
    }
    if (!sums) return;
    A* to = sums + (i64)blockIdx.x * 2 * n + column;
#pragma unroll
    for (int k = 0; k < SIZE; k++) {
        A of_weight = column_sum(dw[k]), of_bias = column_sum(db[k]);
        if (!mine || threadIdx.y) continue;
        to[k] = of_weight;
        to[n + k] = of_bias;
    }
}

KERNEL normalize_rows_back(const G* g, const T* x, const W* weight, const A* mean, const A* var,
                           const A* g_mean, i64 mean_step, const A* g_var, i64 var_step,
                           const T* added, T* dx, i64 rows, i64 n, double eps, i64 centred) {
    const Given given = {mean, var, g_mean, g_var, mean_step, var_step};
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const G* grad = g + row * n;
        const T* from = x + row * n;
        A middle = mean[row], sum = A(0), dot = A(0);
        over(from, n, [&](T value, i64 j) {
            A h = widen(grad[j]);
            if (weight) h *= (A)widen(weight[j]);
            sum += h;
            dot += h * (widen(value) - middle);
        });
        Pair<A> both = row_sums(sum, dot);
        Line line = line_of(given, row, both.first, both.second, n, eps, centred);
        map(from, dx + row * n, n, [&](A value, i64 j) {
            A h = widen(grad[j]);
            if (weight) h *= (A)widen(weight[j]);
            A found = line.scale * h + (value - line.middle) * line.slope + line.shift;
            return added ? found + widen(added[row * n + j]) : found;
        });
    }
}

// Of weight and bias, for rows that do not fit a block: sums[part] = (Σ g x̂, Σ g) over its rows.
KERNEL normalize_affine_back(const G* g, const T* x, const A* mean, const A* var, A* sums,
                             i64 rows, i64 n, i64 parts, i64 length, double eps) {
    for (i64 item = blockIdx.x; item < column_items(parts, n); item += gridDim.x) {
        Column c = column_of(item, n);
        i64 start = c.outer * length, stop = start + length < rows ? start + length : rows;
        A sum = A(0), dot = A(0);
        if (c.valid) {
#pragma unroll 4
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
            sums[c.outer * 2 * n + c.inside] = dot;
            sums[(c.outer * 2 + 1) * n + c.inside] = sum;
        }
    }
}

// The gradients of weight and bias, of which either may be null, from their partial sums.
KERNEL normalize_affine_join(const A* sums, W* dw, W* db, i64 n, i64 parts) {
    for (i64 item = blockIdx.x; item < column_items(1, 2 * n); item += gridDim.x) {
        Column c = column_of(item, 2 * n);
        A sum = A(0);
        if (c.valid) {
#pragma unroll 8
            for (i64 part = threadIdx.y; part < parts; part += blockDim.y)
                sum += sums[part * 2 * n + c.inside];
        }
        sum = column_sum(sum);
        if (!c.valid || threadIdx.y) continue;
        W* to = c.inside < n ? dw : db;
        if (to) narrow(sum, to[c.inside < n ? c.inside : c.inside - n]);
    }
}
