// Sums over rows and over columns, of the elements or of their squares, in a fixed order.
//
// A long sum is split in `parts` of `length`, whose results a second launch sums.
#include "rows.cuh"
#include "columns.cuh"

typedef TYPE_0 T;
typedef TYPE_1 W;  // the result's
typedef TYPE_2 A;  // what sums are made in

// out[row][part] = the sum of x[row][part * length ...]; its square root if `root`.
KERNEL sum_rows(const T* x, W* out, i64 rows, i64 n, i64 parts, i64 length, i64 square, i64 root) {
    for (i64 item = first_row(); item < rows * parts; item += row_step()) {
        i64 row = item / parts, start = item % parts * length;
        i64 count = n - start < length ? n - start : length;
        A total = A(0);
        over(x + row * n + start, count, [&](T stored, i64) {
            A value = (A)widen(stored);
            total += square ? value * value : value;
        });
        total = row_sum(total);
        if (threadIdx.x == 0) narrow(root ? sqrt(total) : total, out[item]);
    }
}

// out[outer][part][inner] = scale · the sum of x[outer][part * length ...][inner].
KERNEL sum_columns(const T* x, W* out, i64 outer, i64 n, i64 inner, i64 parts, i64 length,
                   i64 square, i64 root, double scale) {
    by_packs<T>(aligned(x), inner, [&](auto count) {
        constexpr int V = decltype(count)::value;
        for (i64 item = blockIdx.x; item < outer * parts * strips<V>(inner); item += gridDim.x) {
            Strip s = strip_of<V>(item, n, inner, parts, length);
            A sums[V];
#pragma unroll
            for (int k = 0; k < V; k++) sums[k] = A(0);
            if (s.valid) {
                const T* from = x + s.outer * n * inner + s.column;
                auto load = [&](i64 i) { return load_few<V>(from + i * inner); };
                walk(s.start + threadIdx.y, s.stop, blockDim.y, load, [&](i64, Few<V, T> few) {
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        A value = (A)widen(few.at[k]);
                        sums[k] += square ? value * value : value;
                    }
                });
            }
            i64 to = (s.outer * parts + s.part) * inner;
            strip_sums<V>(sums, s, inner, [&](i64 column, A total) {
                total *= (A)scale;
                narrow(root ? sqrt(total) : total, out[to + column]);
            });
        }
    });
}
