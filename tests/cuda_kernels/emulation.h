// CUDA C++ on the host: the threads of a block as fibers on one thread, blocks one after the other.
//
// A fiber runs until it waits at __syncthreads or in a warp's shuffle; when all that must come have
// come, they go on. What would hang or be undefined on a GPU (a barrier that some threads of the
// block or warp never reach) ends the launch with a message.
#pragma once
#define EMULATED 1
#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static thread_local  // so that it can be found, and filled with NaN
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define INFINITY_F INFINITY
#define CLEAR_NAN NAN

struct Place {
    unsigned x = 0, y = 0, z = 0;
};
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

enum State { READY, AT_BLOCK, AT_WARP, DONE };
constexpr int MOST = 1024, STACK = 128 << 10;

struct Fiber {
    jmp_buf point;
    State state;
    Place thread;
    int parity;
};
static Fiber fibers[MOST];
static int count, current, backwards;
static jmp_buf scheduler, failure;
static ucontext_t first_context, fiber_contexts[MOST];
static char* stacks;
static char message[256];
static unsigned char* shared;
static uint64_t slots[MOST / 32][2][32];
static void (*body)();

static thread_local volatile char anchor;
static char* static_shared;
static size_t static_size;

// The memory of all __shared__ variables: the thread-local segment of this library.
static int find_shared(dl_phdr_info* info, size_t, void*) {
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        uintptr_t from = info->dlpi_addr + part.p_vaddr, at = (uintptr_t)&find_shared;
        ours = ours || (part.p_type == PT_LOAD && from <= at && at < from + part.p_memsz);
    }
    for (int i = 0; ours && i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
        static_shared = (char*)info->dlpi_tls_data;
        static_size = info->dlpi_phdr[i].p_memsz;
    }
    return ours;
}

static void wait_in(State state) {
    Fiber& f = fibers[current];
    f.state = state;
    if (_setjmp(f.point) == 0) _longjmp(scheduler, 1);
    threadIdx = fibers[current].thread;
}

static void fiber_main() {
    for (;;) {
        Fiber& f = fibers[current];
        if (_setjmp(f.point) == 0) _longjmp(scheduler, 1);  // wait for a block's turn
        threadIdx = fibers[current].thread;
        body();
        fibers[current].state = DONE;
    }
}

static void create() {
    stacks = (char*)malloc((size_t)MOST * STACK);
    shared = (unsigned char*)aligned_alloc(16, 256 << 10);
    for (int i = 0; i < MOST; i++) {
        getcontext(&fiber_contexts[i]);
        fiber_contexts[i].uc_stack.ss_sp = stacks + (size_t)i * STACK;
        fiber_contexts[i].uc_stack.ss_size = STACK;
        fiber_contexts[i].uc_link = nullptr;
        makecontext(&fiber_contexts[i], fiber_main, 0);
        current = i;
        if (_setjmp(scheduler) == 0) setcontext(&fiber_contexts[i]);
    }
}

static void fail(const char* text) {
    snprintf(message, sizeof message, "%s in block (%u, %u, %u)", text, blockIdx.x, blockIdx.y,
             blockIdx.z);
    _longjmp(failure, 1);
}

static void resume(int i) {
    current = i;
    if (_setjmp(scheduler) == 0) _longjmp(fibers[i].point, 1);
}

static bool release_warps() {
    bool released = false;
    for (int first = 0; first < count; first += 32) {
        int waiting = 0, size = count - first < 32 ? count - first : 32;
        for (int i = first; i < first + size; i++) waiting += fibers[i].state == AT_WARP;
        if (!waiting) continue;
        if (waiting == size) {
            for (int i = first; i < first + size; i++) fibers[i].state = READY;
            released = true;
        }
    }
    return released;
}

static void run_block() {
    for (int i = 0; i < count; i++) {
        fibers[i].state = READY;
        fibers[i].parity = 0;
        fibers[i].thread.x = i % blockDim.x;
        fibers[i].thread.y = i / blockDim.x % blockDim.y;
        fibers[i].thread.z = i / blockDim.x / blockDim.y;
    }
    memset(shared, 0xff, 256 << 10);  // NaN, where nothing was written
    memset(static_shared, 0xff, static_size);
    for (;;) {
        for (int j = 0; j < count; j++) {
            int i = backwards ? count - 1 - j : j;
            if (fibers[i].state == READY) resume(i);
        }
        if (release_warps()) continue;
        int done = 0, at_block = 0;
        for (int i = 0; i < count; i++) {
            done += fibers[i].state == DONE;
            at_block += fibers[i].state == AT_BLOCK;
        }
        if (done == count) return;
        if (at_block != count) {
            fail(done + at_block == count ? "a thread ended before a barrier that others wait at"
                                          : "a shuffle that not all lanes of the warp reach");
        }
        for (int i = 0; i < count; i++) fibers[i].state = READY;
    }
}

template <class X> uint64_t to_bits(X x) {
    static_assert(sizeof(X) <= 8, "shuffles take up to 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    return bits;
}

template <class X> X exchange(X x, int from) {
    Fiber& f = fibers[current];
    int warp = current / 32, parity = f.parity;
    f.parity ^= 1;
    slots[warp][parity][current % 32] = to_bits(x);
    wait_in(AT_WARP);
    X out;
    memcpy(&out, &slots[warp][parity][from & 31], sizeof out);
    return out;
}

template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<Args>*)args[I]...);
}
template <class... Args> void call(void (*kernel)(Args...), void** args) {
    call(kernel, args, std::index_sequence_for<Args...>());
}
template <class... Args> constexpr int arity(void (*)(Args...)) { return sizeof...(Args); }
template <class... Args> constexpr bool plain(void (*)(Args...)) {
    return ((std::is_pointer_v<Args> || std::is_same_v<Args, long long> ||
             std::is_same_v<Args, double>)&&...);
}

static void** arguments;

static const char* launch(void (*start)(), const unsigned* grid, const unsigned* block,
                          void** args, int reversed) {
    if (!stacks) create();
    anchor = 1;
    dl_iterate_phdr(find_shared, nullptr);
    body = start;
    arguments = args;
    backwards = reversed;
    blockDim.x = block[0], blockDim.y = block[1], blockDim.z = block[2];
    gridDim.x = grid[0], gridDim.y = grid[1], gridDim.z = grid[2];
    count = blockDim.x * blockDim.y * blockDim.z;
    if (_setjmp(failure)) {
        create();  // the fibers that did not end are lost
        return message;
    }
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx.x = x, blockIdx.y = y, blockIdx.z = z;
                run_block();
            }
    return nullptr;
}

}  // namespace emulation

#define EMULATE(name)                                                                            \
    static_assert(emulation::plain(name), #name " takes more than pointers, i64 and double");    \
    static void start_##name() { emulation::call(name, emulation::arguments); }                  \
    extern "C" int arity_##name() { return emulation::arity(name); }                             \
    extern "C" int threads_##name() { return THREADS; }                                          \
    extern "C" const char* launch_##name(const unsigned* grid, const unsigned* block,            \
                                         void** args, int reversed) {                            \
        return emulation::launch(start_##name, grid, block, args, reversed);                     \
    }

#define DYNAMIC_SHARED(name) unsigned char* name = emulation::shared
#define CHECK_ALIGNED(p) \
    if ((uintptr_t)(p) & 15) emulation::fail("16 bytes at an address that 16 does not divide")

// --- what CUDA offers in device code --------------------------------------------------------------

static inline void __syncthreads() { emulation::wait_in(emulation::AT_BLOCK); }
static inline void __syncwarp() { emulation::wait_in(emulation::AT_WARP); }
static inline void __threadfence() {}
static inline void __trap() { emulation::fail("a trap"); }
template <class X> X __shfl_xor_sync(unsigned, X x, int mask) {
    return emulation::exchange(x, emulation::current % 32 ^ mask);
}
template <class X> X __shfl_sync(unsigned, X x, int from) { return emulation::exchange(x, from); }
template <class X> X atomicAdd(X* to, X x) {
    X before = *to;
    *to = before + x;
    return before;
}
template <class X> X atomicCAS(X* to, X expected, X x) {
    X before = *to;
    if (before == expected) *to = x;
    return before;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static inline float __uint_as_float(unsigned x) {
    float out;
    memcpy(&out, &x, 4);
    return out;
}
static inline long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
static inline unsigned __float_as_uint(float x) {
    unsigned out;
    memcpy(&out, &x, 4);
    return out;
}
static inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
static inline float __int_as_float(int x) { return __uint_as_float((unsigned)x); }
static inline double __longlong_as_double(long long x) {
    double out;
    memcpy(&out, &x, 8);
    return out;
}
// What a GPU rounds by itself; g++ fuses nothing either (-ffp-contract=off).
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float x) { return std::sqrt(x); }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double x) { return std::sqrt(x); }
static inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
static inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::abs, std::exp, std::log, std::log1p, std::expm1, std::sqrt, std::tanh, std::erf,
    std::floor, std::pow, std::isfinite, std::fma, std::copysign;

static inline float float16_to_float(unsigned short bits) {
    _Float16 x;
    memcpy(&x, &bits, 2);
    return x;
}
static inline unsigned short float_to_float16(float x) {
    _Float16 half = x;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}
static inline unsigned short float_to_bfloat16(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
