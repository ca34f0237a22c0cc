// Two normal numbers of two uniform ones, with the CPU's bits (`backend/kernels/box_muller.py` says
// how and why). Intrinsics round each step by itself: the compiler would fuse plain operators. A sum
// is fused where its product is exact, which changes no bit.
#pragma once
#include "common.cuh"

__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float div(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float root(float x) { return __fsqrt_rn(x); }
__device__ inline float sum_of(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double div(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline double root(double x) { return __dsqrt_rn(x); }
__device__ inline double sum_of(double a, double b, double c) { return __fma_rn(a, b, c); }

// c₀ + c₁ x + c₂ x² + ... by Horner's rule.
template <class A> __device__ inline A horner(A x, A c) { return c; }
template <class A, class... Rest> __device__ inline A horner(A x, A c, A next, Rest... rest) {
    return add(mul(horner(x, next, rest...), x), c);
}

// The upper half of the digits.
__device__ inline float head(float x) { return __int_as_float(__float_as_int(x) & ~0xfff); }
__device__ inline double head(double x) {
    return __longlong_as_double(__double_as_longlong(x) & ~0x7ffffffll);
}

// n and 1 - m, where x = m 2ⁿ with m from √½ to √2.
template <class A> struct Parts {
    A n, f;
};
__device__ inline Parts<float> split(float x) {
    int bits = __float_as_int(x), n = (bits - 0x3f3504f3) >> 23;
    return {(float)n, add(1.0f, -__int_as_float(bits - (int)((u32)n << 23)))};
}
__device__ inline Parts<double> split(double x) {
    i64 bits = __double_as_longlong(x), n = (bits - 0x3fe6a09e667f3bcdll) >> 52;
    return {(double)(int)n, add(1.0, -__longlong_as_double(bits - (i64)((u64)n << 52)))};
}

// -2 log(1 - u), of the bits of u as a whole number.
__device__ inline float squared_radius(float bits) {
    Parts<float> x = split(sum_of(-0x1p-24f, bits, 1.0f));
    float terms = horner(x.f, 1.0f, 0.6666666f, 0.50001645f, 0.40002453f, 0.33246714f, 0.28403503f,
                         0.26320368f, 0.25523242f, 0.15269095f);
    float rest = add(mul(x.n, 4.2438881e-04f), mul(mul(x.f, x.f), terms));
    return sum_of(x.n, -1.38671875f, sum_of(2.0f, x.f, rest));
}
__device__ inline double squared_radius(double bits) {
    Parts<double> x = split(sum_of(-0x1p-53, bits, 1.0));
    double s = div(x.f, add(2.0, -x.f)), h = mul(x.f, x.f), z = mul(s, s);
    double terms = horner(z, 1.3333333333333366, 0.7999999999936671, 0.5714285738419329,
                          0.4444440616274188, 0.363667095604932, 0.3063784651935904,
                          0.2950223447017046);
    double rest = add(mul(x.n, -2.857213640620779e-06), add(mul(s, add(h, mul(terms, z))), h));
    return sum_of(x.n, -1.38629150390625, sum_of(2.0, x.f, rest));
}

// sin(πt/2) / t - 1.5 and (cos(πt/2) - 1) / t², of z = t².
__device__ inline float sines(float z) {
    return horner(z, 0.07079632f, -0.6459632f, 0.07967716f, -0.0045944164f);
}
__device__ inline float cosines(float z) {
    return horner(z, -1.2337005f, 0.25366852f, -0.020855235f, 0.0008934552f);
}
__device__ inline double sines(double z) {
    return horner(z, 0.07079632679489661, -0.6459640975062441, 0.07969262624603003,
                  -0.004681754132101595, 0.0001604411487601744, -3.598635834074152e-06,
                  5.632869487999191e-08);
}
__device__ inline double cosines(double z) {
    return horner(z, -1.2337005501361697, 0.2536695079010403, -0.020863480763126926,
                  0.0009192602718625697, -2.520202232312589e-05, 4.7101724048059753e-07,
                  -6.269846316229046e-09);
}

template <class A> struct Normals {
    A first, second;
};

// r cos 2πv and r sin 2πv, with r of u, from the bits of both.
template <class A> __device__ inline Normals<A> box_muller(A u, A v) {
    constexpr bool single = sizeof(A) == 4;
    const A quarter = single ? A(0x1p-22) : A(0x1p-51), tiny = single ? A(0x1p-126) : A(0x1p-1022);
    A square = squared_radius(u), r = root(square), r_head = head(r);
    A r_tail = div(sum_of(-r_head, r_head, square), add(add(r, r_head), tiny));

    A y = sum_of(-quarter, v, A(2)), a = add(y < A(0) ? -y : y, A(-1));
    A distance = a < A(0) ? -a : a;
    bool far = distance > A(0.5);
    A t = far ? add(A(1), -distance) : distance, z = mul(t, t);

    A rest = mul(t, sines(z)), s = sum_of(A(1.5), t, rest), s_head = head(s);
    A s_tail = add(sum_of(A(1.5), t, -s_head), rest);
    s = sum_of(r_head, s_head, add(mul(r_head, s_tail), mul(r_tail, s)));
    A c = mul(z, cosines(z));
    c = add(r_head, add(mul(r_head, c), mul(r_tail, add(A(1), c))));
    return {copysign(far ? c : s, a), copysign(far ? s : c, y)};
}
