// Random numbers from Philox, the words of `backend/philox.py`: a thread makes the blocks i, i + step,
// ... and of each four words, or what they become. TYPE_0 is the type of the floating results.
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

// The upper 24 bits of a word, or 53 of two, as a fraction in [0, 1).
__device__ inline float fraction(const Words& words, int k, float) {
    return (float)(words.at[k] >> 8) * 5.9604644775390625e-8f;
}
__device__ inline u64 pair(const Words& words, int k) {
    return (u64)words.at[2 * k + 1] << 32 | words.at[2 * k];
}
__device__ inline double fraction(const Words& words, int k, double) {
    return (double)(pair(words, k) >> 11) * 1.1102230246251565404e-16;
}

static constexpr int PER_BLOCK = sizeof(A) == 8 ? 2 : 4;

KERNEL random_uniform(A* out, i64 count, i64 seed, i64 first, const u64* state) {
    Stream stream = stream_of(seed, first, state);
    for (i64 block = thread_index(); PER_BLOCK * block < count; block += thread_count()) {
        Words words = philox(stream.seed, stream.first + block);
        for (int k = 0; k < PER_BLOCK && PER_BLOCK * block + k < count; k++)
            out[PER_BLOCK * block + k] = fraction(words, k, A(0));
    }
}

// Sine and cosine of an angle in [0, 2π], by the nearest quarter turn: the CPU's polynomials, so
// that the digits are the same. π/2 stands in three parts, of which the first has few bits.
struct Turn {
    A sine, cosine;
};
__device__ inline Turn quarter(A k, A s, A c) {
    Turn t;
    t.sine = k == A(1) || k == A(3) ? c : s;
    t.cosine = k == A(1) || k == A(3) ? s : c;
    if (k == A(2) || k == A(3)) t.sine = -t.sine;
    if (k == A(1) || k == A(2)) t.cosine = -t.cosine;
    return t;
}

__device__ inline Turn turn(float angle) {
    float k = floorf(angle * 0.63661977236758134308f + 0.5f);
    float r = fmaf(-k, 1.5707855224609375f, angle);  // exact up to here
    r = fmaf(-k, 1.0804334124259185e-5f, r);
    r = fmaf(-k, -1.6513995574653217e-13f, r);
    float z = r * r;
    float s = -2.5052108385441718775e-8f, c = -2.7557319223985890653e-7f;
    s = s * z + 2.7557319223985890653e-6f;
    s = s * z - 1.9841269841269841270e-4f;
    s = s * z + 8.3333333333333333333e-3f;
    s = s * z - 1.6666666666666666667e-1f;
    c = c * z + 2.4801587301587301587e-5f;
    c = c * z - 1.3888888888888888889e-3f;
    c = c * z + 4.1666666666666666667e-2f;
    c = c * z - 0.5f;
    return quarter(k, r + r * z * s, 1.0f + z * c);
}
__device__ inline Turn turn(double angle) {
    double s, c;
    sincos(angle, &s, &c);
    Turn t = {(A)s, (A)c};
    return t;
}

// Pairs of uniforms, transformed as Box and Muller (1958) do.
KERNEL random_normal(A* out, i64 count, i64 seed, i64 first, const u64* state) {
    const A whole = A(6.283185307179586476925);
    Stream stream = stream_of(seed, first, state);
    for (i64 block = thread_index(); PER_BLOCK * block < count; block += thread_count()) {
        Words words = philox(stream.seed, stream.first + block);
        for (int k = 0; k < PER_BLOCK; k += 2) {
            A radius = sqrt(A(-2) * log(A(1) - fraction(words, k, A(0))));
            Turn t = turn(fraction(words, k + 1, A(0)) * whole);
            i64 at = PER_BLOCK * block + k;
            if (at < count) out[at] = radius * t.cosine;
            if (at + 1 < count) out[at + 1] = radius * t.sine;
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
