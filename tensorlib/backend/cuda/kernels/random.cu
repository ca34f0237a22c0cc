// Random numbers from Philox, the words of `backend/philox.py`: a thread makes the blocks i, i + step,
// ... and of each four words, or what they become. TYPE_0 is the type of the floating results.
#include "box_muller.cuh"
#include "philox.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;
typedef unsigned char Bool;

KERNEL random_words(u32* out, i64 count, i64 seed, i64 first, const u64* state) {
    Stream stream = stream_of(seed, first, state);
    for (i64 block = thread_index(); 4 * block < count; block += thread_count()) {
        Words words = philox(stream.seed, stream.first + block);
        for (int k = 0; k < 4 && 4 * block + k < count; k++) out[4 * block + k] = words.at[k];
    }
}

// low + (word span >> 32), for spans up to 2³².
KERNEL random_integers(i64* out, i64 count, i64 seed, i64 first, const u64* state,
                       i64 low, i64 span) {
    Stream stream = stream_of(seed, first, state);
    for (i64 block = thread_index(); 4 * block < count; block += thread_count()) {
        Words words = philox(stream.seed, stream.first + block);
        for (int k = 0; k < 4 && 4 * block + k < count; k++)
            out[4 * block + k] = low + (i64)((u64)words.at[k] * (u64)span >> 32);
    }
}

// --- floating-point numbers ----------------------------------------------------------------------

// The upper 24 bits of a word, or 53 of two, as a whole number.
__device__ inline float whole(const Words& words, int k, float) {
    return (float)(words.at[k] >> 8);
}
__device__ inline u64 pair(const Words& words, int k) {
    return (u64)words.at[2 * k + 1] << 32 | words.at[2 * k];
}
__device__ inline double whole(const Words& words, int k, double) {
    return (double)(pair(words, k) >> 11);
}

static constexpr int PER_BLOCK = sizeof(A) == 8 ? 2 : 4;

KERNEL random_uniform(A* out, i64 count, i64 seed, i64 first, const u64* state) {
    const A unit = sizeof(A) == 8 ? A(0x1p-53) : A(0x1p-24);
    Stream stream = stream_of(seed, first, state);
    for (i64 block = thread_index(); PER_BLOCK * block < count; block += thread_count()) {
        Words words = philox(stream.seed, stream.first + block);
        for (int k = 0; k < PER_BLOCK && PER_BLOCK * block + k < count; k++)
            out[PER_BLOCK * block + k] = whole(words, k, A(0)) * unit;
    }
}

// Pairs of uniforms, transformed.
KERNEL random_normal(A* out, i64 count, i64 seed, i64 first, const u64* state) {
    Stream stream = stream_of(seed, first, state);
    for (i64 block = thread_index(); PER_BLOCK * block < count; block += thread_count()) {
        Words words = philox(stream.seed, stream.first + block);
        for (int k = 0; k < PER_BLOCK; k += 2) {
            Normals<A> pair = box_muller(whole(words, k, A(0)), whole(words, k + 1, A(0)));
            i64 at = PER_BLOCK * block + k;
            if (at < count) out[at] = pair.first;
            if (at + 1 < count) out[at + 1] = pair.second;
        }
    }
}

// --- dropout -------------------------------------------------------------------------------------

// x scaled where the random fraction's bits reach the threshold, x times 0 elsewhere. A thread has
// one block, of 2 or 4 elements that lie side by side.
KERNEL dropout(const T* x, T* out, Bool* kept, i64 n, i64 seed, i64 first,
               const u64* state, i64 threshold, double scale) {
    struct alignas(PER_BLOCK * sizeof(T)) Values {
        T at[PER_BLOCK];
    };
    struct alignas(PER_BLOCK) Flags {
        Bool at[PER_BLOCK];
    };
    bool vectors = aligned(x) && aligned(out) && aligned(kept);
    Stream stream = stream_of(seed, first, state);
    for (i64 block = thread_index(); PER_BLOCK * block < n; block += thread_count()) {
        Words words = philox(stream.seed, stream.first + block);
        i64 start = PER_BLOCK * block;
        int count = n - start < PER_BLOCK ? (int)(n - start) : PER_BLOCK;
        Values values;
        Flags flags;
        if (vectors && count == PER_BLOCK)
            values = reinterpret_cast<const Values*>(x)[block];
        else
#pragma unroll
            for (int k = 0; k < PER_BLOCK; k++)
                if (k < count) values.at[k] = x[start + k];
#pragma unroll
        for (int k = 0; k < PER_BLOCK; k++) {
            i64 bits = PER_BLOCK == 4 ? (i64)(words.at[k] >> 8) : (i64)(pair(words, k & 1) >> 11);
            flags.at[k] = bits >= threshold;
            if (k < count)
                narrow(widen(values.at[k]) * (flags.at[k] ? (A)scale : A(0)), values.at[k]);
        }
        if (vectors && count == PER_BLOCK) {
            reinterpret_cast<Values*>(out)[block] = values;
            reinterpret_cast<Flags*>(kept)[block] = flags;
        } else {
#pragma unroll
            for (int k = 0; k < PER_BLOCK; k++) {
                if (k >= count) continue;
                out[start + k] = values.at[k];
                kept[start + k] = flags.at[k];
            }
        }
    }
}
