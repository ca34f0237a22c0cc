// The stable order of rows: a block sorts a tile in shared memory (Batcher's bitonic network, 1968),
// and further launches merge runs of sorted tiles two by two, each block the same number of elements
// (merge path: Green, McColl and Bader, 2012). TYPE_0 is the type of the elements, NUMBER_1 how many
// are in a tile.
//
// An element becomes a key, an unsigned integer of the same order, and its place in the row. Keys and
// places together are never equal, so every way of sorting is stable. NaN comes last, and -0 equals 0.
#define THREADS (NUMBER_1 / 2 < 32 ? 32 : NUMBER_1 / 2)
#include "common.cuh"

typedef TYPE_0 T;
static constexpr int TILE = NUMBER_1;

template <int bytes> struct Unsigned {
    typedef u32 type;
};
template <> struct Unsigned<8> {
    typedef u64 type;
};
typedef Unsigned<sizeof(T)>::type Key;

__device__ inline u32 key_of(float x) {
    if (x != x) return 0xffffffffu;
    u32 bits = x == 0 ? 0 : __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ inline u64 key_of(double x) {
    if (x != x) return ~(u64)0;
    u64 bits = x == 0 ? 0 : (u64)__double_as_longlong(x);
    return bits >> 63 ? ~bits : bits | (u64)1 << 63;
}
__device__ inline u32 key_of(float16 x) { return key_of(widen(x)); }
__device__ inline u32 key_of(bfloat16 x) { return key_of(widen(x)); }
__device__ inline u32 key_of(bool x) { return x; }
__device__ inline u32 key_of(unsigned char x) { return x; }
__device__ inline u32 key_of(int x) { return (u32)x ^ 1u << 31; }
__device__ inline u64 key_of(i64 x) { return (u64)x ^ (u64)1 << 63; }
__device__ inline u64 key_of(u64 x) { return x; }

struct Item {
    Key key;
    u32 place;
};
__device__ inline bool before(const Item& a, const Item& b) {
    return a.key < b.key || (a.key == b.key && a.place < b.place);
}

// Where results go: keys and places of a pass that is followed by another, or places for the caller.
__device__ inline void put(const Item& item, i64 at, Key* keys, u32* places, i64* order) {
    if (order) {
        order[at] = item.place;
    } else {
        keys[at] = item.key;
        places[at] = item.place;
    }
}

KERNEL sort_tiles(const T* x, Key* keys, u32* places, i64* order, i64 rows, i64 n,
                  i64 descending) {
    __shared__ Item items[TILE];
    i64 across = (n + TILE - 1) / TILE;
    for (i64 block = blockIdx.x; block < rows * across; block += gridDim.x) {
        i64 first = block % across * TILE, start = block / across * n;
        for (int i = threadIdx.x; i < TILE; i += blockDim.x) {
            bool real = first + i < n;
            Key key = real ? key_of(x[start + first + i]) : ~(Key)0;
            items[i].key = real && descending ? ~key : key;
            items[i].place = real ? (u32)(first + i) : ~0u;  // what fills the tile comes last
        }
        for (int size = 2; size <= TILE; size *= 2)
            for (int step = size / 2; step; step /= 2) {
                __syncthreads();
                int pair = threadIdx.x, i = 2 * pair - (pair & (step - 1));
                if (pair >= TILE / 2) continue;
                Item a = items[i], b = items[i + step];
                if (before(b, a) != ((i & size) != 0)) {
                    items[i] = b;
                    items[i + step] = a;
                }
            }
        __syncthreads();
        for (int i = threadIdx.x; i < TILE && first + i < n; i += blockDim.x)
            put(items[i], start + first + i, keys, places, order);
        __syncthreads();
    }
}

// --- merging -------------------------------------------------------------------------------------

// Two runs that stand side by side in keys and places.
struct Runs {
    const Key* keys;
    const u32* places;
    i64 left, right;  // their lengths

    __device__ Item at(i64 i) const {
        Item item = {keys[i], places[i]};
        return item;
    }
};

// How many of the first `count` elements of the merged runs are the left one's.
__device__ inline i64 split(const Runs& runs, i64 count) {
    i64 low = count > runs.right ? count - runs.right : 0;
    i64 high = count < runs.left ? count : runs.left;
    while (low < high) {
        i64 middle = (low + high) / 2;
        if (before(runs.at(middle), runs.at(runs.left + count - 1 - middle)))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// How many of a sorted list stand before an item.
__device__ inline int rank(const Item* items, int count, const Item& item) {
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (before(items[middle], item))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

KERNEL merge_runs(const Key* keys, const u32* places, Key* keys_out, u32* places_out, i64* order,
                  i64 rows, i64 n, i64 run) {
    __shared__ Item items[TILE];
    __shared__ i64 splits[2];
    i64 across = (n + TILE - 1) / TILE;
    for (i64 block = blockIdx.x; block < rows * across; block += gridDim.x) {
        i64 first = block % across * TILE, begin = first / (2 * run) * (2 * run);
        i64 start = block / across * n + begin, left = n - begin < run ? n - begin : run;
        i64 right = n - begin - left < run ? n - begin - left : run;
        Runs runs = {keys + start, places + start, left, right};
        i64 from = first - begin, to = from + TILE < left + right ? from + TILE : left + right;
        if (threadIdx.x < 2) splits[threadIdx.x] = split(runs, threadIdx.x ? to : from);
        __syncthreads();
        i64 a = splits[0], b = from - a;  // where this block begins in either run
        int lefts = (int)(splits[1] - a), count = (int)(to - from);
        for (int i = threadIdx.x; i < count; i += blockDim.x)
            items[i] = runs.at(i < lefts ? a + i : left + b + i - lefts);
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            int at = i < lefts ? i + rank(items + lefts, count - lefts, items[i])
                               : i - lefts + rank(items, lefts, items[i]);
            put(items[i], start + from + at, keys_out, places_out, order);
        }
        __syncthreads();
    }
}
