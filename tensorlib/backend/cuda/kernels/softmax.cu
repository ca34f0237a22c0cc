// Softmax and its logarithm, forward and backward, along the rows of (rows, n) or the middle of
// (outer, n, inner). A row is read once for its maximum and sum, and again to write.
#include "softmax.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

KERNEL softmax_rows(const T* x, T* out, i64 rows, i64 n, i64 logarithm) {
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T* from = x + row * n;
        Online<A> all;
        over(from, n, [&](T value, i64) { all.add(widen(value)); });
        all = row_join(all);
        A top = all.top;
        if (logarithm) {
            A rest = log(all.sum);
            map(from, out + row * n, n, [=](A value, i64) { return (value - top) - rest; });
        } else {
            A factor = A(1) / all.sum;
            map(from, out + row * n, n, [=](A value, i64) { return exp(value - top) * factor; });
        }
    }
}

// out (g - Σ g out); of the logarithm g - exp(out) Σ g.
KERNEL softmax_rows_back(const T* g, const T* out, T* dx, i64 rows, i64 n, i64 logarithm) {
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T *grad = g + row * n, *from = out + row * n;
        A dot = A(0);
        over(grad, from, n, [&](T a, T b, i64) {
            dot += logarithm ? widen(a) : widen(a) * widen(b);
        });
        dot = row_sum(dot);
        if (logarithm)
            map(grad, from, dx + row * n, n, [=](A a, A b, i64) { return a - exp(b) * dot; });
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
