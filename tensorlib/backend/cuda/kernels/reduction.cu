// Sums over rows and over columns, of the elements or of their squares, in a fixed order.
//
// A long sum is split in `parts` of `length`, whose results a second launch sums.
#include "rows.cuh"

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

// out[outer][part][inner] = the sum of x[outer][part * length ...][inner].
KERNEL sum_columns(const T* x, W* out, i64 outer, i64 n, i64 inner, i64 parts, i64 length,
                   i64 square, i64 root) {
    for (i64 item = blockIdx.x; item < column_items(outer * parts, inner); item += gridDim.x) {
        Column c = column_of(item, inner);
        i64 start = c.outer % parts * length, stop = start + length < n ? start + length : n;
        const T* from = x + (c.outer / parts * n) * inner + c.inside;
        A total = A(0);
        if (c.valid) {
            for (i64 i = start + threadIdx.y; i < stop; i += blockDim.y) {
                A value = (A)widen(from[i * inner]);
                total += square ? value * value : value;
            }
        }
        total = column_sum(total);
        if (c.valid && threadIdx.y == 0)
            narrow(root ? sqrt(total) : total, out[c.outer * inner + c.inside]);
    }
}
