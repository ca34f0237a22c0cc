// Matrices transposed: (batches, rows, columns) becomes (batches, columns, rows).
//
// Squares go through shared memory, so that both sides are read and written by 16 bytes where their
// rows allow it. Elements are only moved: T stands for all types of its size.
#include "common.cuh"

typedef TYPE_0 T;

static constexpr int SIDE = 64;

// The places of a part of a matrix: pack(row, column) where packs begin, else one(row, column).
template <class P, class F>
__device__ inline void each(int rows, int columns, bool packed, P pack, F one) {
    constexpr int size = Pack<T>::size;
    int step = packed ? size : 1, across = SIDE / step;
    for (int i = threadIdx.x; i < rows * across; i += blockDim.x) {
        int row = i / across, column = i % across * step;
        if (column >= columns) continue;
        if (packed)
            pack(row, column);
        else
            one(row, column);
    }
}

KERNEL transpose(const T* x, T* out, i64 batches, i64 rows, i64 columns) {
    __shared__ T square[SIDE][SIDE + (sizeof(T) < 4 ? 4 / sizeof(T) : 1)];
    i64 down = (rows + SIDE - 1) / SIDE, across = (columns + SIDE - 1) / SIDE;
    bool in_packs = columns % Pack<T>::size == 0 && aligned(x);
    bool out_packs = rows % Pack<T>::size == 0 && aligned(out);
    for (i64 item = blockIdx.x; item < batches * down * across; item += gridDim.x) {
        i64 column = item % across * SIDE, row = item / across % down * SIDE;
        i64 start = item / across / down * rows * columns;
        int high = (int)(rows - row < SIDE ? rows - row : SIDE);
        int wide = (int)(columns - column < SIDE ? columns - column : SIDE);
        const T* from = x + start + row * columns + column;
        T* to = out + start + column * rows + row;
        __syncthreads();
        each(high, wide, in_packs,
             [&](int r, int c) {
                 Pack<T> pack = load_pack(from + r * columns + c);
#pragma unroll
                 for (int k = 0; k < Pack<T>::size; k++) square[r][c + k] = pack.at[k];
             },
             [&](int r, int c) { square[r][c] = from[r * columns + c]; });
        __syncthreads();
        each(wide, high, out_packs,
             [&](int c, int r) {
                 Pack<T> pack;
#pragma unroll
                 for (int k = 0; k < Pack<T>::size; k++) pack.at[k] = square[r + k][c];
                 store_pack(to + c * rows + r, pack);
             },
             [&](int c, int r) { to[c * rows + r] = square[r][c]; });
    }
}
