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

// to[k] += the k-th of 16 bytes; four floats by one instruction where the GPU has it.
__device__ inline void add_pack(A* to, const Pack<T>& pack) {
#if !defined(EMULATED) && __CUDA_ARCH__ >= 900
    if (sizeof(A) == 4) {
#pragma unroll
        for (int k = 0; k < Pack<T>::size; k += 4)
            asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                             __cvta_generic_to_global(to + k)),
                         "f"((float)widen(pack.at[k])), "f"((float)widen(pack.at[k + 1])),
                         "f"((float)widen(pack.at[k + 2])), "f"((float)widen(pack.at[k + 3]))
                         : "memory");
        return;
    }
#endif
#pragma unroll
    for (int k = 0; k < Pack<T>::size; k++) atomicAdd(to + k, widen(pack.at[k]));
}

// By elements or, if `packs`, by 16 bytes; I counts them.
template <class I, bool packs>
__device__ inline void add_each(A* sums, const i64* index, const T* values, I total, i64 n,
                                I count, I inner) {
    constexpr int size = packs ? Pack<T>::size : 1;
    for (I i = (I)thread_index(); i < total; i += (I)thread_count()) {
        I row = i / inner, j = row % count, o = row / count;
        A* to = sums + (((i64)o * n + inside(index[j], n)) * inner + i % inner) * size;
        if (packs)
            add_pack(to, load_pack(values + (i64)i * size));
        else
            atomicAdd(to, widen(values[i]));
    }
}

// sums[o][index[j]] += values[o][j], in whatever order.
KERNEL add_atomic(A* sums, const i64* index, const T* values, i64 outer, i64 n, i64 count,
                  i64 inner) {
    constexpr int size = Pack<T>::size;
    i64 total = outer * count * inner;
    if (total >= (i64)1 << 31)
        add_each<i64, false>(sums, index, values, total, n, count, inner);
    else if (inner % size == 0 && aligned(sums) && aligned(values))
        add_each<u32, true>(sums, index, values, (u32)(total / size), n, (u32)count,
                            (u32)(inner / size));
    else
        add_each<u32, false>(sums, index, values, (u32)total, n, (u32)count, (u32)inner);
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
