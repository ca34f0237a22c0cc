// Matrices transposed: (batches, rows, columns) becomes (batches, columns, rows).
//
// Squares go through shared memory, so that both sides are read and written by 16 bytes where their
// rows allow it. Elements are only moved: T stands for all types of its size.
#include "common.cuh"

typedef TYPE_0 T;

static constexpr int SIDE = 64;

// put(row, column, element) for all elements of a matrix of `rows` rows that are `stride` apart.
template <class F>
__device__ inline void read(const T* from, int rows, int columns, i64 stride, bool packed, F put) {
    constexpr int W_ = Pack<T>::size;
    if (packed) {
        int across = columns / W_;
        for (int i = threadIdx.x; i < rows * (SIDE / W_); i += blockDim.x) {
            int row = i / (SIDE / W_), at = i % (SIDE / W_);
            if (at >= across) continue;
            Pack<T> pack = load_pack(from + row * stride + at * W_);
#pragma unroll
            for (int k = 0; k < W_; k++) put(row, at * W_ + k, pack.at[k]);
        }
    } else {
        for (int i = threadIdx.x; i < rows * SIDE; i += blockDim.x) {
            int row = i / SIDE, column = i % SIDE;
            if (column < columns) put(row, column, from[row * stride + column]);
        }
    }
}

// The same with to[row][column] = get(row, column).
template <class F>
__device__ inline void write(T* to, int rows, int columns, i64 stride, bool packed, F get) {
    constexpr int W_ = Pack<T>::size;
    if (packed) {
        int across = columns / W_;
        for (int i = threadIdx.x; i < rows * (SIDE / W_); i += blockDim.x) {
            int row = i / (SIDE / W_), at = i % (SIDE / W_);
            if (at >= across) continue;
            Pack<T> pack;
#pragma unroll
            for (int k = 0; k < W_; k++) pack.at[k] = get(row, at * W_ + k);
            store_pack(to + row * stride + at * W_, pack);
        }
    } else {
        for (int i = threadIdx.x; i < rows * SIDE; i += blockDim.x) {
            int row = i / SIDE, column = i % SIDE;
            if (column < columns) to[row * stride + column] = get(row, column);
        }
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
        __syncthreads();
        read(x + start + row * columns + column, high, wide, columns, in_packs,
             [&](int r, int c, T value) { square[r][c] = value; });
        __syncthreads();
        write(out + start + column * rows + row, wide, high, rows, out_packs,
              [&](int c, int r) { return square[r][c]; });
    }
}
