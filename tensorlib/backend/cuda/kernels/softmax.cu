// Softmax and its logarithm, forward and backward, along the rows of (rows, n) or the middle of
// (outer, n, inner). A row is read once for its maximum and sum, and again to write.
#include "softmax.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

static constexpr int SIZE = Pack<T>::size;

// Rows that the threads hold: one exponential for each element.
__device__ inline void softmax_held(const T* x, T* out, i64 rows, int n, bool logarithm) {
    const int packs = n / SIZE;
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T* from = x + row * n;
        Pack<T> given[HELD];
        A values[HELD][SIZE], top = -INFINITY_F, sum = A(0);
        held(packs, [&](int h, int pack) { given[h] = load_pack(from + pack * SIZE); });
        held(packs, [&](int h, int) {
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                values[h][k] = widen(given[h].at[k]);
                top = values[h][k] > top ? values[h][k] : top;
            }
        });
        top = row_max(top);
        held(packs, [&](int h, int) {
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                A power = exponential<T>(values[h][k] - top);
                sum += power;
                values[h][k] = logarithm ? values[h][k] - top : power;
            }
        });
        sum = row_sum(sum);
        A rest = logarithm ? log(sum) : A(1) / sum;
        held(packs, [&](int h, int pack) {
#pragma unroll
            for (int k = 0; k < SIZE; k++)
                narrow(logarithm ? values[h][k] - rest : values[h][k] * rest, given[h].at[k]);
            store_pack(out + row * n + pack * SIZE, given[h]);
        });
    }
}

KERNEL softmax_rows(const T* x, T* out, i64 rows, i64 n, i64 logarithm) {
    if (is_held<T>(n, x, out)) return softmax_held(x, out, rows, (int)n, logarithm);
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T* from = x + row * n;
        Online<A> all;
        over_packs(from, n, [&](T value, i64) { all.add(widen(value)); },
                   [&](const Pack<T>& pack, i64) { all.add(pack); });
        all = row_join(all);
        A top = all.top;
        if (logarithm) {
            A rest = log(all.sum);
            map(from, out + row * n, n, [=](A value, i64) { return (value - top) - rest; });
        } else {
            A factor = A(1) / all.sum;
            map(from, out + row * n, n,
                [=](A value, i64) { return exponential<T>(value - top) * factor; });
        }
    }
}

__device__ inline void softmax_held_back(const T* g, const T* out, T* dx, i64 rows, int n,
                                         bool logarithm) {
    const int packs = n / SIZE;
    for (i64 row = first_row(); row < rows; row += row_step()) {
        Pack<T> grads[HELD], outs[HELD];
        A dot = A(0);
        held(packs, [&](int h, int pack) {
            grads[h] = load_pack(g + row * n + pack * SIZE);
            outs[h] = load_pack(out + row * n + pack * SIZE);
        });
        held(packs, [&](int h, int) {
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                A a = widen(grads[h].at[k]);
                dot += logarithm ? a : a * widen(outs[h].at[k]);
            }
        });
        dot = row_sum(dot);
        held(packs, [&](int h, int pack) {
#pragma unroll
            for (int k = 0; k < SIZE; k++) {
                A a = widen(grads[h].at[k]), b = widen(outs[h].at[k]);
                narrow(logarithm ? a - exponential<T>(b) * dot : b * (a - dot), grads[h].at[k]);
            }
            store_pack(dx + row * n + pack * SIZE, grads[h]);
        });
    }
}

// out (g - Σ g out); of the logarithm g - exp(out) Σ g.
KERNEL softmax_rows_back(const T* g, const T* out, T* dx, i64 rows, i64 n, i64 logarithm) {
    if (is_held<T>(n, g, out) && aligned(dx))
        return softmax_held_back(g, out, dx, rows, (int)n, logarithm);
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T *grad = g + row * n, *from = out + row * n;
        A dot = A(0);
        over(grad, from, n, [&](T a, T b, i64) {
            dot += logarithm ? widen(a) : widen(a) * widen(b);
        });
        dot = row_sum(dot);
        if (logarithm)
            map(grad, from, dx + row * n, n,
                [=](A a, A b, i64) { return a - exponential<T>(b) * dot; });
        else
            map(grad, from, dx + row * n, n, [=](A a, A b, i64) { return b * (a - dot); });
    }
}

KERNEL softmax_columns(const T* x, T* out, i64 outer, i64 n, i64 inner, i64 logarithm) {
    for (i64 item = blockIdx.x; item < column_items(outer, inner); item += gridDim.x) {
        Column c = column_of(item, inner);
        i64 base = c.outer * n * inner + c.inside;
        Online<A> all;
        if (c.valid)
            for (i64 i = threadIdx.y; i < n; i += blockDim.y) all.add(widen(x[base + i * inner]));
        all = column_join(all);
        if (!c.valid) continue;
        A rest = logarithm ? log(all.sum) : A(1) / all.sum;
        for (i64 i = threadIdx.y; i < n; i += blockDim.y) {
            A value = widen(x[base + i * inner]) - all.top;
            narrow(logarithm ? value - rest : exp(value) * rest, out[base + i * inner]);
        }
    }
}

KERNEL softmax_columns_back(const T* g, const T* out, T* dx, i64 outer, i64 n, i64 inner,
                            i64 logarithm) {
    for (i64 item = blockIdx.x; item < column_items(outer, inner); item += gridDim.x) {
        Column c = column_of(item, inner);
        i64 base = c.outer * n * inner + c.inside;
        A dot = A(0);
        if (c.valid) {
            for (i64 i = threadIdx.y; i < n; i += blockDim.y) {
                A a = widen(g[base + i * inner]), b = widen(out[base + i * inner]);
                dot += logarithm ? a : a * b;
            }
        }
        dot = column_sum(dot);
        if (!c.valid) continue;
        for (i64 i = threadIdx.y; i < n; i += blockDim.y) {
            A a = widen(g[base + i * inner]), b = widen(out[base + i * inner]);
            narrow(logarithm ? a - exp(b) * dot : b * (a - dot), dx[base + i * inner]);
        }
    }
}
