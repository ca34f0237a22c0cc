// Philox4x32-10 (Salmon et al. 2011): block number i of stream `seed` is a pure function of both.
#pragma once
#include "common.cuh"

struct Words {
    u32 at[4];
};

__device__ inline Words philox(u64 seed, u64 block) {
    u32 c0 = (u32)block, c1 = (u32)(block >> 32), c2 = 0, c3 = 0;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        u32 high1 = __umulhi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Words out = {{c0, c1, c2, c3}};
    return out;
}

// Where random numbers begin: as given, or, in a captured graph, the seed that stands in `state` and
// as many blocks further as stands beside it.
struct Stream {
    u64 seed, first;
};
__device__ inline Stream stream_of(i64 seed, i64 first, const u64* state) {
    Stream s = {(u64)seed, (u64)first};
    if (state) {
        s.seed = state[0];
        s.first += state[1];
    }
    return s;
}
