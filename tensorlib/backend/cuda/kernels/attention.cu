// Attention in blocks, without ever all scores (Dao et al. 2022): the fallback where no library has
// it. Arrays are (B, H, L, E), keys and values (B, H', S, ...) where H' divides H.
//
//     S = scale · Q Kᵀ + mask      P = exp(S - lse)      out = (P · D) V
//     dV = (P · D)ᵀ g      dS = P · (g Vᵀ · D - δ),  δ = rowsum(g · out) - g_lse
#include "attention.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;
static constexpr int D = NUMBER_1 / TILE;  // elements of a head that a lane has, at most

__device__ inline void forward(const T* q, Steps qs, const T* k, Steps ks, const T* v, Steps vs,
                               T* out, Steps os, A* lse, Sizes s, Masking m, Dropout drop,
                               A scale) {
    DYNAMIC_SHARED(memory);
    i64 k_step = s.deep + 1;
    A* own = reinterpret_cast<A*>(memory);   // OWNED queries
    A* tile = own + OWNED * s.deep;          // TILE keys
    A* values = tile + TILE * k_step;        // TILE values
    int lane = threadIdx.x & 31, first = threadIdx.x / 32 * MINE;
    i64 blocks = (s.length + OWNED - 1) / OWNED;
    for (i64 item = blockIdx.x; item < s.batch * s.heads * blocks; item += gridDim.x) {
        i64 b = item / blocks / s.heads, h = item / blocks % s.heads, i0 = item % blocks * OWNED;
        i64 hk = h / (s.heads / s.shared);
        __syncthreads();
        load_rows(q + b * qs.batch + h * qs.head, qs.row, i0, s.length, s.deep, own, s.deep, OWNED);
        A top[MINE], total[MINE], sums[MINE][D];
        for (int r = 0; r < MINE; r++) {
            top[r] = -INFINITY_F;
            total[r] = A(0);
            for (int d = 0; d < D; d++) sums[r][d] = A(0);
        }
        i64 last = m.causal && i0 + OWNED < s.keys ? i0 + OWNED : s.keys;
        for (i64 j0 = 0; j0 < last; j0 += TILE) {
            __syncthreads();
            load_rows(k + b * ks.batch + hk * ks.head, ks.row, j0, s.keys, s.deep, tile, k_step,
                      TILE);
            load_rows(v + b * vs.batch + hk * vs.head, vs.row, j0, s.keys, s.width, values,
                      s.width, TILE);
            __syncthreads();
            A score[MINE];
            products(tile, k_step, own, s.deep, s.deep, score);
            for (int r = 0; r < MINE; r++) {
                i64 i = i0 + first + r, j = j0 + lane;
                A value = masked(score[r] * scale, m, s, b, h, i, j);
                A most = warp_max(value);
                most = most > top[r] ? most : top[r];
                A fall = top[r] == most ? A(1) : exp(top[r] - most);
                A p = value == -INFINITY_F ? A(0) : exp(value - most);
                total[r] = total[r] * fall + warp_sum(p);
                top[r] = most;
                for (int d = 0; d < D; d++) sums[r][d] *= fall;
                score[r] = p == A(0) ? p : p * kept<A>(drop, s, b, h, i, j);
            }
            accumulate(score, values, s.width, s.width, sums);
        }
        for (int r = 0; r < MINE; r++) {
            i64 i = i0 + first + r;
            if (i >= s.length) continue;
            A inverse = total[r] == A(0) ? A(0) : A(1) / total[r];
            if (lane == 0) lse[(b * s.heads + h) * s.length + i] = top[r] + log(total[r]);
            for (int d = 0; d < D; d++)
                if (lane + 32 * d < s.width)
                    narrow(sums[r][d] * inverse,
                           out[b * os.batch + h * os.head + i * os.row + lane + 32 * d]);
        }
    }
}

KERNEL attention(const T* q, STEPS(q), const T* k, STEPS(k), const T* v, STEPS(v), T* out, STEPS(o),
                 A* lse, SIZES, MASKING, DROPOUT, double scale) {
    forward(q, STEPS_OF(q), k, STEPS_OF(k), v, STEPS_OF(v), out, STEPS_OF(o), lse, SIZES_GIVEN,
            MASKING_GIVEN, DROPOUT_GIVEN, (A)scale);
}

// --- backward ------------------------------------------------------------------------------------

// delta = Σ g out - g_lse of each query.
KERNEL attention_delta(const T* g, STEPS(g), const T* out, STEPS(o), const A* g_lse, i64 lse_step,
                       A* delta, i64 batch, i64 heads, i64 length, i64 width) {
    i64 step = (i64)gridDim.x * blockDim.y;
    for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < batch * heads * length;
         row += step) {
        i64 b = row / length / heads, h = row / length % heads, i = row % length;
        A sum = A(0);
        for (i64 e = threadIdx.x; e < width; e += 32)
            sum += widen(g[b * g_batch + h * g_head + i * g_row + e]) *
                   widen(out[b * o_batch + h * o_head + i * o_row + e]);
        sum = warp_sum(sum);
        if (threadIdx.x == 0) delta[row] = sum - g_lse[row * lse_step];
    }
}

// The probability of a score, and the slope of the score.
struct Slopes {
    A dropped, slope;
};
__device__ inline Slopes slopes(A score, A product, A lse, A delta, A factor) {
    Slopes out;
    A p = score == -INFINITY_F ? A(0) : exp(score - lse);
    out.dropped = p * factor;
    out.slope = p * (product * factor - delta);
    return out;
}

__device__ inline void query_gradient(const T* q, Steps qs, const T* k, Steps ks, const T* v,
                                      Steps vs, const T* g, Steps gs, const A* lse,
                                      const A* delta, T* dq, Steps dqs, A* ds, Sizes s, Masking m,
                                      Dropout drop, A scale) {
    DYNAMIC_SHARED(memory);
    i64 k_step = s.deep + 1, v_step = s.width + 1;
    A* own = reinterpret_cast<A*>(memory);      // OWNED queries
    A* own_g = own + OWNED * s.deep;            // OWNED gradients
    A* tile = own_g + OWNED * s.width;          // TILE keys
    A* values = tile + TILE * k_step;           // TILE values
    int lane = threadIdx.x & 31, first = threadIdx.x / 32 * MINE;
    i64 blocks = (s.length + OWNED - 1) / OWNED;
    for (i64 item = blockIdx.x; item < s.batch * s.heads * blocks; item += gridDim.x) {
        i64 b = item / blocks / s.heads, h = item / blocks % s.heads, i0 = item % blocks * OWNED;
        i64 hk = h / (s.heads / s.shared), line = (b * s.heads + h) * s.length;
        __syncthreads();
        load_rows(q + b * qs.batch + h * qs.head, qs.row, i0, s.length, s.deep, own, s.deep, OWNED);
        load_rows(g + b * gs.batch + h * gs.head, gs.row, i0, s.length, s.width, own_g, s.width,
                  OWNED);
        A sums[MINE][D];
        for (int r = 0; r < MINE; r++)
            for (int d = 0; d < D; d++) sums[r][d] = A(0);
        i64 last = m.causal && !ds && i0 + OWNED < s.keys ? i0 + OWNED : s.keys;
        for (i64 j0 = 0; j0 < last; j0 += TILE) {
            __syncthreads();
            load_rows(k + b * ks.batch + hk * ks.head, ks.row, j0, s.keys, s.deep, tile, k_step,
                      TILE);
            load_rows(v + b * vs.batch + hk * vs.head, vs.row, j0, s.keys, s.width, values, v_step,
                      TILE);
            __syncthreads();
            A score[MINE], product[MINE];
            products(tile, k_step, own, s.deep, s.deep, score);
            products(values, v_step, own_g, s.width, s.width, product);
            for (int r = 0; r < MINE; r++) {
                i64 i = i0 + first + r, j = j0 + lane;
                A value = masked(score[r] * scale, m, s, b, h, i, j);
                score[r] = A(0);
                if (i < s.length && j < s.keys) {
                    if (value != -INFINITY_F)
                        score[r] = slopes(value, product[r], lse[line + i], delta[line + i],
                                          kept<A>(drop, s, b, h, i, j))
                                       .slope;
                    if (ds) ds[(line + i) * s.keys + j] = score[r];
                }
            }
            accumulate(score, tile, k_step, s.deep, sums);
        }
        for (int r = 0; r < MINE; r++) {
            i64 i = i0 + first + r;
            for (int d = 0; d < D; d++)
                if (i < s.length && lane + 32 * d < s.deep)
                    narrow(sums[r][d] * scale,
                           dq[b * dqs.batch + h * dqs.head + i * dqs.row + lane + 32 * d]);
        }
    }
}

__device__ inline void key_gradient(const T* q, Steps qs, const T* k, Steps ks, const T* v,
                                    Steps vs, const T* g, Steps gs, const A* lse, const A* delta,
                                    T* dk, Steps dks, T* dv, Steps dvs, Sizes s, Masking m,
                                    Dropout drop, A scale) {
    DYNAMIC_SHARED(memory);
    i64 q_step = s.deep + 1, g_step = s.width + 1;
    A* own = reinterpret_cast<A*>(memory);      // OWNED keys
    A* own_v = own + OWNED * s.deep;            // OWNED values
    A* tile = own_v + OWNED * s.width;          // TILE queries
    A* grads = tile + TILE * q_step;            // TILE gradients
    int lane = threadIdx.x & 31, first = threadIdx.x / 32 * MINE;
    i64 blocks = (s.keys + OWNED - 1) / OWNED, group = s.heads / s.shared;
    for (i64 item = blockIdx.x; item < s.batch * s.shared * blocks; item += gridDim.x) {
        i64 b = item / blocks / s.shared, hk = item / blocks % s.shared, j0 = item % blocks * OWNED;
        __syncthreads();
        load_rows(k + b * ks.batch + hk * ks.head, ks.row, j0, s.keys, s.deep, own, s.deep, OWNED);
        load_rows(v + b * vs.batch + hk * vs.head, vs.row, j0, s.keys, s.width, own_v, s.width,
                  OWNED);
        A keys[MINE][D], values[MINE][D];
        for (int r = 0; r < MINE; r++)
            for (int d = 0; d < D; d++) keys[r][d] = values[r][d] = A(0);
        for (i64 h = hk * group; h < (hk + 1) * group; h++) {
            i64 line = (b * s.heads + h) * s.length;
            for (i64 i0 = m.causal ? j0 / TILE * TILE : 0; i0 < s.length; i0 += TILE) {
                __syncthreads();
                load_rows(q + b * qs.batch + h * qs.head, qs.row, i0, s.length, s.deep, tile,
                          q_step, TILE);
                load_rows(g + b * gs.batch + h * gs.head, gs.row, i0, s.length, s.width, grads,
                          g_step, TILE);
                __syncthreads();
                A score[MINE], product[MINE];
                products(tile, q_step, own, s.deep, s.deep, score);
                products(grads, g_step, own_v, s.width, s.width, product);
                for (int r = 0; r < MINE; r++) {
                    i64 i = i0 + lane, j = j0 + first + r;
                    A value = masked(score[r] * scale, m, s, b, h, i, j);
                    Slopes found = {A(0), A(0)};
                    if (value != -INFINITY_F)
                        found = slopes(value, product[r], lse[line + i], delta[line + i],
                                       kept<A>(drop, s, b, h, i, j));
                    score[r] = found.slope;
                    product[r] = found.dropped;
                }
                accumulate(score, tile, q_step, s.deep, keys);
                accumulate(product, grads, g_step, s.width, values);
            }
        }
        for (int r = 0; r < MINE; r++) {
            i64 j = j0 + first + r;
            if (j >= s.keys) continue;
            for (int d = 0; d < D; d++) {
                i64 e = lane + 32 * d;
                if (e < s.deep)
                    narrow(keys[r][d] * scale, dk[b * dks.batch + hk * dks.head + j * dks.row + e]);
                if (e < s.width)
                    narrow(values[r][d], dv[b * dvs.batch + hk * dvs.head + j * dvs.row + e]);
            }
        }
    }
}

KERNEL attention_queries(const T* q, STEPS(q), const T* k, STEPS(k), const T* v, STEPS(v),
                         const T* g, STEPS(g), const A* lse, const A* delta, T* dq, STEPS(dq),
                         A* ds, SIZES, MASKING, DROPOUT, double scale) {
    query_gradient(q, STEPS_OF(q), k, STEPS_OF(k), v, STEPS_OF(v), g, STEPS_OF(g), lse, delta, dq,
                   STEPS_OF(dq), ds, SIZES_GIVEN, MASKING_GIVEN, DROPOUT_GIVEN, (A)scale);
}

KERNEL attention_keys(const T* q, STEPS(q), const T* k, STEPS(k), const T* v, STEPS(v),
                      const T* g, STEPS(g), const A* lse, const A* delta, T* dk, STEPS(dk), T* dv,
                      STEPS(dv), SIZES, MASKING, DROPOUT, double scale) {
    key_gradient(q, STEPS_OF(q), k, STEPS_OF(k), v, STEPS_OF(v), g, STEPS_OF(g), lse, delta, dk,
                 STEPS_OF(dk), dv, STEPS_OF(dv), SIZES_GIVEN, MASKING_GIVEN, DROPOUT_GIVEN,
                 (A)scale);
}
