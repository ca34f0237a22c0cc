// All gradients of a model at once: the sum of their squares, and unscaling with a check.
#include "tables.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

// parts[chunk] = Σ x², formed and summed in double precision: no square overflows.
KERNEL square_chunks(const i64* table, const i64* owners, const i64* starts, i64 chunks,
                     double* parts) {
    for (i64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const i64* row = table + owners[chunk] * WIDTH;
        i64 start = starts[chunk], n = row[SIZE] - start < CHUNK ? row[SIZE] - start : CHUNK;
        const T* x = array_at<T>(row, PARAMETER) + start;
        double total = 0.0;
        i64 fours = aligned_four(x) ? n / 4 : 0;
        for (i64 i = threadIdx.x; i < fours; i += blockDim.x) {
            Four<T> values = reinterpret_cast<const Four<T>*>(x)[i];
#pragma unroll
            for (int j = 0; j < 4; j++) total += (double)widen(values.at[j]) * widen(values.at[j]);
        }
        for (i64 i = 4 * fours + threadIdx.x; i < n; i += blockDim.x)
            total += (double)widen(x[i]) * widen(x[i]);
        total = block_sum(total);
        if (threadIdx.x == 0) parts[chunk] = total;
    }
}

// x times what `factor` points to; `found` becomes 1 if an x was infinite or not a number.
KERNEL scale_chunks(const i64* table, const i64* owners, const i64* starts, i64 chunks,
                    const float* factor, float* found) {
    A scale = (A)*factor;
    for (i64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const i64* row = table + owners[chunk] * WIDTH;
        i64 start = starts[chunk], n = row[SIZE] - start < CHUNK ? row[SIZE] - start : CHUNK;
        T* x = array_at<T>(row, PARAMETER) + start;
        bool odd = false;
        i64 fours = aligned_four(x) ? n / 4 : 0;
        for (i64 i = threadIdx.x; i < fours; i += blockDim.x) {
            Four<T> values = reinterpret_cast<const Four<T>*>(x)[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                A value = widen(values.at[j]);
                odd = odd || value - value != A(0);
                narrow(value * scale, values.at[j]);
            }
            reinterpret_cast<Four<T>*>(x)[i] = values;
        }
        for (i64 i = 4 * fours + threadIdx.x; i < n; i += blockDim.x) {
            A value = widen(x[i]);
            odd = odd || value - value != A(0);
            narrow(value * scale, x[i]);
        }
        if (found && odd) *found = 1.0f;
    }
}
