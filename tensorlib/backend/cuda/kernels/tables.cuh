// Many arrays in one launch: a table of addresses and sizes, and whose part each chunk is.
//
// A row of the table is (arrays ..., counter, size), WIDTH numbers; chunk k belongs to row owners[k]
// and begins at element starts[k].
#pragma once
#define THREADS 512
#define BLOCKS 2
#include "common.cuh"

static constexpr i64 CHUNK = 16384;  // elements that a block takes at a time
static constexpr int WIDTH = 8;
enum Column { PARAMETER, GRADIENT, FIRST, SECOND, THIRD, MASTER, COUNTER, SIZE };

// Four neighbours, of whatever size.
template <class X> struct alignas(4 * sizeof(X)) Four {
    X at[4];
};
template <class X> __device__ inline bool aligned_four(const X* p) {
    return ((u64)p & (4 * sizeof(X) - 1)) == 0;
}
template <class X> __device__ inline X* array_at(const i64* row, int column) {
    return reinterpret_cast<X*>(row[column]);
}
