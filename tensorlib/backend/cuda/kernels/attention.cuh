// What the attention kernels share: the arguments, tiles in shared memory, scores.
//
// A block has 4 warps. A warp owns MINE rows (queries, or keys), and a lane of it one row of the
// tile of 32 that passes by: the lane computes the scores of its row with the warp's rows, and sums
// run over lanes by shuffles. Sizes of heads go up to 32 D.
#pragma once
#define THREADS 128
#include "philox.cuh"

static constexpr int TILE = 32, MINE = 4, OWNED = 16;

// (batch, head, row) strides of an array whose rows are contiguous.
struct Steps {
    i64 batch, head, row;
};
struct Sizes {
    i64 batch, heads, shared, length, keys, deep, width;  // `shared` heads of keys and values
};
struct Masking {
    const unsigned char* open;  // or null
    const void* added;          // or null, of A
    i64 batch, head, row, column;
    i64 causal;
};
struct Dropout {
    Stream stream;
    i64 bound;
    double factor;
};

#define SIZES                                                                                    \
    i64 batch, i64 heads, i64 shared, i64 length, i64 keys, i64 deep, i64 width
#define SIZES_GIVEN                                                                              \
    { batch, heads, shared, length, keys, deep, width }
#define STEPS(x) i64 x##_batch, i64 x##_head, i64 x##_row
#define STEPS_OF(x)                                                                              \
    { x##_batch, x##_head, x##_row }
#define MASKING                                                                                  \
    const unsigned char *open, const A *added, i64 m_batch, i64 m_head, i64 m_row, i64 m_column, \
        i64 causal
#define MASKING_GIVEN                                                                            \
    { open, added, m_batch, m_head, m_row, m_column, causal }
#define DROPOUT i64 seed, i64 offset, const u64 *state, i64 bound, double factor
#define DROPOUT_GIVEN                                                                            \
    { stream_of(seed, offset, state), bound, factor }

// Rows start, start + 1, ... of a head into shared memory, as A, zeros beyond the last.
template <class T, class A>
__device__ inline void load_rows(const T* from, i64 step, i64 start, i64 stop, i64 width, A* to,
                                 i64 to_step, int count) {
    for (i64 i = threadIdx.x; i < count * width; i += blockDim.x) {
        i64 row = i / width, e = i % width;
        to[row * to_step + e] = start + row < stop ? (A)widen(from[(start + row) * step + e]) : A(0);
    }
}

// The score with scale and mask; -∞ where closed.
template <class A>
__device__ inline A masked(A score, const Masking& m, const Sizes& s, i64 b, i64 h, i64 i, i64 j) {
    if (i >= s.length || j >= s.keys || (m.causal && j > i)) return -INFINITY_F;
    i64 at = b * m.batch + h * m.head + i * m.row + j * m.column;
    if (m.open && !m.open[at]) return -INFINITY_F;
    if (m.added) score += reinterpret_cast<const A*>(m.added)[at];
    return score;
}

// 0, or 1 / (1 - p): word j mod 4 of the block of (b, h, i, j / 4).
template <class A>
__device__ inline A kept(const Dropout& d, const Sizes& s, i64 b, i64 h, i64 i, i64 j) {
    if (!d.bound) return A(1);
    i64 line = (b * s.heads + h) * s.length + i;
    Words words = philox(d.stream.seed, d.stream.first + line * ((s.keys + 3) / 4) + j / 4);
    u32 word = j & 2 ? (j & 1 ? words.at[3] : words.at[2]) : (j & 1 ? words.at[1] : words.at[0]);
    return (i64)(word >> 8) >= d.bound ? (A)d.factor : A(0);
}

// scores[r] = the product of row `lane` of a tile with row r of the warp's own.
template <class A>
__device__ inline void products(const A* tile, i64 tile_step, const A* own, i64 own_step, i64 deep,
                                A* scores) {
    int lane = threadIdx.x & 31, first = threadIdx.x / 32 * MINE;
#pragma unroll
    for (int r = 0; r < MINE; r++) scores[r] = A(0);
    for (i64 e = 0; e < deep; e++) {
        A value = tile[lane * tile_step + e];
#pragma unroll
        for (int r = 0; r < MINE; r++) scores[r] += own[(first + r) * own_step + e] * value;
    }
}

// sums[r][d] += Σ over the tile's rows of weights[r] (of that row's lane) times element lane + 32 d.
template <int D, class A>
__device__ inline void accumulate(const A* weights, const A* tile, i64 step, i64 width,
                                  A (*sums)[D]) {
    int lane = threadIdx.x & 31;
    for (int row = 0; row < TILE; row++) {
        A w[MINE];
#pragma unroll
        for (int r = 0; r < MINE; r++) w[r] = __shfl_sync(FULL, weights[r], row);
#pragma unroll
        for (int d = 0; d < D; d++) {
            if (lane + 32 * d >= width) continue;
            A value = tile[row * step + lane + 32 * d];
#pragma unroll
            for (int r = 0; r < MINE; r++) sums[r][d] += w[r] * value;
        }
    }
}
