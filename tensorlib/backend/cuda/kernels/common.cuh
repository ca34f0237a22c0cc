// What all kernels share: types, vectors of 16 bytes, reductions within a warp and a block.
//
// A kernel stores the type T and computes in A = Acc<T>: float for the half precisions, T itself
// otherwise. Its arguments are pointers, `i64` and `double` alone, so that the host need not know
// more of them. Files are compiled with -DTYPE_0=..., the type T, and TYPE_1 where there are two.
#pragma once

typedef long long i64;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef EMULATED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define INFINITY_F __int_as_float(0x7f800000)
#define CLEAR_NAN __int_as_float(0x7fc00000)
#define CHECK_ALIGNED(p)  // the emulator looks, since the host forgives what a GPU does not
#endif

// How many threads a block of the file's kernels has at most, and how many such blocks are to fit on
// a multiprocessor: a kernel has registers accordingly.
#ifndef THREADS
#define THREADS 256
#endif
#ifndef BLOCKS
#define BLOCKS 1
#endif
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
#define FULL 0xffffffffu

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

template <class X> struct Acc {
    typedef float type;
};
template <> struct Acc<double> {
    typedef double type;
};

// --- conversions ---------------------------------------------------------------------------------

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bfloat16 x) { return __uint_as_float((u32)x.bits << 16); }

#ifdef EMULATED
__device__ inline float widen(float16 x) { return float16_to_float(x.bits); }
__device__ inline void narrow(float x, float16& out) { out.bits = float_to_float16(x); }
__device__ inline void narrow(float x, bfloat16& out) { out.bits = float_to_bfloat16(x); }
#else
__device__ inline float widen(float16 x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}
__device__ inline void narrow(float x, float16& out) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}
__device__ inline void narrow(float x, bfloat16& out) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}
#endif
__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(double x, float& out) { out = (float)x; }
__device__ inline void narrow(double x, double& out) { out = x; }
__device__ inline void narrow(float x, double& out) { out = x; }
__device__ inline void narrow(double x, float16& out) { narrow((float)x, out); }
__device__ inline void narrow(double x, bfloat16& out) { narrow((float)x, out); }

template <class To, class From> __device__ inline To rounded(From x) {
    To out;
    narrow(x, out);
    return out;
}

// --- functions of what is rounded to T -----------------------------------------------------------

// exp(x) and 1 / x: of halves by the GPU's own 2ˣ and 1 / x, whose errors they do not show.
template <class T> __device__ inline double exponential(double x) { return exp(x); }
template <class T> __device__ inline double reciprocal(double x) { return 1.0 / x; }
template <class T> __device__ inline float exponential(float x) {
#ifndef EMULATED
    if (sizeof(T) == 2) {
        float out;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x * 1.44269504f));
        return out;
    }
#endif
    return exp(x);
}
template <class T> __device__ inline float reciprocal(float x) {
#ifndef EMULATED
    if (sizeof(T) == 2) {
        float out;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
        return out;
    }
#endif
    return 1.0f / x;
}

// --- vectors -------------------------------------------------------------------------------------

// As many elements as the narrowest of the types of one access has in 16 bytes.
template <class X> struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(X);
    X at[size];
};

template <class X> __device__ inline Pack<X> load_pack(const X* from) {
    CHECK_ALIGNED(from);
    return *reinterpret_cast<const Pack<X>*>(from);
}
template <class X> __device__ inline void store_pack(X* to, const Pack<X>& pack) {
    CHECK_ALIGNED(to);
#ifdef EMULATED
    *reinterpret_cast<Pack<X>*>(to) = pack;
#else  // of an assignment NVRTC makes a store for each member
    const u32* words = reinterpret_cast<const u32*>(&pack);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
#endif
}
__device__ inline bool aligned(const void* p) { return ((u64)p & 15) == 0; }

__device__ inline i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline i64 thread_count() { return (i64)gridDim.x * blockDim.x; }

// --- reductions ----------------------------------------------------------------------------------

template <class X> __device__ inline X warp_sum(X x) {
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(FULL, x, step);
    return x;
}

template <class X> __device__ inline X warp_max(X x) {
    for (int step = 16; step; step >>= 1) {
        X other = __shfl_xor_sync(FULL, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// The sum over a block of whole warps, in every thread; the order is fixed.
template <class X> __device__ inline X block_sum(X x) {
    __shared__ X parts[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    x = warp_sum(x);
    __syncthreads();  // the last call's readers are done
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? parts[lane] : X(0));
}

// Two sums at once.
template <class X> struct Pair {
    X first, second;
};
template <class X> __device__ inline Pair<X> block_sums(X a, X b) {
    __shared__ X parts[2][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();
    if (lane == 0) {
        parts[0][warp] = a;
        parts[1][warp] = b;
    }
    __syncthreads();
    Pair<X> out;
    out.first = warp_sum(lane < warps ? parts[0][lane] : X(0));
    out.second = warp_sum(lane < warps ? parts[1][lane] : X(0));
    return out;
}
