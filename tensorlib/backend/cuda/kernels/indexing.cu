// Gathering along a dimension, and its adjoint, which adds. Arrays are (outer, n, inner).
#include "common.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

// A place counted from the front; one that is not there ends the launch with an error, as in torch.
__device__ inline i64 inside(i64 place, i64 n) {
    if (place < 0) place += n;
    if (place < 0 || place >= n) __trap();
    return place;
}

// X is an element or 16 bytes of them, I counts them.
template <class I, class X>
__device__ inline void take_each(const X* table, const i64* index, X* values, I total, i64 n,
                                 I count, I inner) {
    for (I i = (I)thread_index(); i < total; i += (I)thread_count()) {
        I row = i / inner, j = row % count, o = row / count;
        values[i] = table[((i64)o * n + inside(index[j], n)) * inner + i % inner];
    }
}

// In 32 bits where they suffice, since divisions of 64 are slow.
template <class X>
__device__ inline void take_all(const X* table, const i64* index, X* values, i64 outer, i64 n,
                                i64 count, i64 inner) {
    i64 total = outer * count * inner;
    if (total < (i64)1 << 31)
        take_each<u32>(table, index, values, (u32)total, n, (u32)count, (u32)inner);
    else
        take_each<i64>(table, index, values, total, n, count, inner);
}

// values[o][j] = table[o][index[j]], elements side by side along inner.
KERNEL take(const T* table, const i64* index, T* values, i64 outer, i64 n, i64 count, i64 inner) {
    const int size = Pack<T>::size;
    if (inner % size == 0 && aligned(table) && aligned(values))
        take_all((const Pack<T>*)table, index, (Pack<T>*)values, outer, n, count, inner / size);
    else
        take_all(table, index, values, outer, n, count, inner);
}

// sums[o][index[j]] += values[o][j], in whatever order.
KERNEL add_atomic(A* sums, const i64* index, const T* values, i64 outer, i64 n, i64 count,
                  i64 inner) {
    for (i64 i = thread_index(); i < outer * count * inner; i += thread_count()) {
        i64 row = i / inner, j = row % count, o = row / count;
        atomicAdd(sums + (o * n + inside(index[j], n)) * inner + i % inner, widen(values[i]));
    }
}

// The same in the index's order. `keys` are place · count + j, sorted: equal places are neighbours,
// and the first of them adds them all.
KERNEL add_sorted(T* out, const i64* keys, const T* values, i64 outer, i64 n, i64 count,
                  i64 inner) {
    for (i64 i = thread_index(); i < outer * count * inner; i += thread_count()) {
        i64 at = i / inner % count, o = i / inner / count, place = keys[at] / count;
        if (at > 0 && keys[at - 1] / count == place) continue;
        T* to = out + (o * n + place) * inner + i % inner;
        A sum = widen(*to);
        for (i64 k = at; k < count && keys[k] / count == place; k++)
            sum += widen(values[(o * count + keys[k] % count) * inner + i % inner]);
        narrow(sum, *to);
    }
}

KERNEL sort_keys(const i64* index, i64* keys, i64 n, i64 count) {
    for (i64 j = thread_index(); j < count; j += thread_count())
        keys[j] = inside(index[j], n) * count + j;
}

// out += sums, rounded once.
KERNEL add_rounded(T* out, const A* sums, i64 size) {
    for (i64 i = thread_index(); i < size; i += thread_count())
        narrow(widen(out[i]) + sums[i], out[i]);
}

// values[o][j][i] = table[o][index[o][j][i]][i].
KERNEL gather(const T* table, const i64* index, T* values, i64 outer, i64 n, i64 count,
              i64 inner) {
    for (i64 i = thread_index(); i < outer * count * inner; i += thread_count()) {
        i64 o = i / inner / count;
        values[i] = table[(o * n + inside(index[i], n)) * inner + i % inner];
    }
}
