// The largest element of each window and its number in the window, and what goes by that number.
//
// A number counts a window's taps, those in the padding included: TYPE_1 is a byte where that is
// enough for all of them. Of equal elements the first wins, of NaN the last, as on the CPU.
#define INDEX NUMBER_2
#include "windows.cuh"

typedef TYPE_1 Number;

__device__ inline bool wins(A x, A best) { return x > best || x != x; }

KERNEL max_pool(const T* x, T* out, Number* numbers, SHAPE) {
    Shape s = SHAPE_GIVEN;
    if (s.tiled() && aligned(x) && aligned(out) && aligned(numbers)) {
        tiles(s, [&](i64 from, i64 to) {
            Pack<T> upper = load_pack(x + from), lower = load_pack(x + from + s.w.in);
            Tiles<T> best;
            Tiles<Number> won;
#pragma unroll
            for (int k = 0; k < Tiles<T>::size; k++) {
                T found = upper.at[2 * k], rest[3] = {upper.at[2 * k + 1], lower.at[2 * k],
                                                      lower.at[2 * k + 1]};
                Number number = 0;
#pragma unroll
                for (int j = 0; j < 3; j++) {
                    bool better = wins(widen(rest[j]), widen(found));
                    found = better ? rest[j] : found;
                    number = better ? (Number)(j + 1) : number;
                }
                best.at[k] = found;
                won.at[k] = number;
            }
            store_tiles(out + to, best);
            store_tiles(numbers + to, won);
        });
        return;
    }
    I size = s.inputs(), windows = s.outputs();
    places(s, s.d.out, s.h.out, s.w.out, [&](auto count, i64 plane, I at, I d, I h, I w) {
        constexpr int N = decltype(count)::value;
        I d_from = s.d.origin(d), h_from = s.h.origin(h), w_from = s.w.origin(w);
        Span ds = s.d.taps(d_from), hs = s.h.taps(h_from), ws = s.w.taps(w_from);
        const T* from = x + plane * size;
        A best[N];
        int won[N];
#pragma unroll
        for (int r = 0; r < N; r++) {
            best[r] = A(-INFINITY_F);
            won[r] = (int)((ds.start * s.h.kernel + hs.start) * s.w.kernel + ws.start);
        }
        for (I td = ds.start; td < ds.stop; td++) {
            for (I th = hs.start; th < hs.stop; th++) {
                I row = (d_from + td * s.d.dilation) * s.h.in + h_from + th * s.h.dilation;
                I place = row * s.w.in + w_from + ws.start * s.w.dilation;
                I tap = (td * s.h.kernel + th) * s.w.kernel + ws.start;
                for (I tw = ws.start; tw < ws.stop; tw++, tap++, place += s.w.dilation) {
#pragma unroll
                    for (int r = 0; r < N; r++) {
                        A value = widen(from[(i64)r * size + place]);
                        if (wins(value, best[r])) {
                            best[r] = value;
                            won[r] = (int)tap;
                        }
                    }
                }
            }
        }
        i64 to = plane * windows + at;
#pragma unroll
        for (int r = 0; r < N; r++) {
            narrow(best[r], out[to + (i64)r * windows]);
            numbers[to + (i64)r * windows] = (Number)won[r];
        }
    });
}

// Each element is the sum, in their order, of the windows whose number names it.
KERNEL window_scatter(const T* g, const Number* numbers, T* out, SHAPE) {
    Shape s = SHAPE_GIVEN;
    if (s.tiled() && aligned(g) && aligned(out) && aligned(numbers)) {
        tiles(s, [&](i64 to, i64 from) {
            Tiles<T> values = load_tiles(g + from);
            Tiles<Number> won = load_tiles(numbers + from);
            Pack<T> upper, lower;
            T zero = rounded<T>(A(0));
#pragma unroll
            for (int k = 0; k < Tiles<T>::size; k++) {
                T value = values.at[k];
                int number = (int)won.at[k];
                upper.at[2 * k] = number == 0 ? value : zero;
                upper.at[2 * k + 1] = number == 1 ? value : zero;
                lower.at[2 * k] = number == 2 ? value : zero;
                lower.at[2 * k + 1] = number == 3 ? value : zero;
            }
            store_pack(out + to, upper);
            store_pack(out + to + s.w.in, lower);
        });
        return;
    }
    I size = s.inputs(), windows = s.outputs();
    places(s, s.d.in, s.h.in, s.w.in, [&](auto count, i64 plane, I at, I d, I h, I w) {
        constexpr int N = decltype(count)::value;
        Span ds = s.d.windows(d), hs = s.h.windows(h), ws = s.w.windows(w);
        i64 from = plane * windows;
        A sums[N];
#pragma unroll
        for (int r = 0; r < N; r++) sums[r] = A(0);
        for (I od = ds.start; od < ds.stop; od++) {
            I td = s.d.tap(d, od);
            for (I oh = hs.start; oh < hs.stop; oh++) {
                I th = s.h.tap(h, oh), row = (od * s.h.out + oh) * s.w.out;
                for (I ow = ws.start; ow < ws.stop; ow++) {
                    I tw = s.w.tap(w, ow), tap = (td * s.h.kernel + th) * s.w.kernel + tw;
                    if (td < 0 || th < 0 || tw < 0) continue;
#pragma unroll
                    for (int r = 0; r < N; r++) {
                        i64 place = from + (i64)r * windows + row + ow;
                        A value = widen(g[place]);
                        sums[r] += (int)numbers[place] == (int)tap ? value : A(0);
                    }
                }
            }
        }
        i64 to = plane * size + at;
#pragma unroll
        for (int r = 0; r < N; r++) {
            narrow(sums[r], out[to + (i64)r * size]);
        }
    });
}

// The element of each window that its number names.
KERNEL window_gather(const T* x, const Number* numbers, T* out, SHAPE) {
    Shape s = SHAPE_GIVEN;
    I size = s.inputs(), windows = s.outputs();
    places(s, s.d.out, s.h.out, s.w.out, [&](auto count, i64 plane, I at, I d, I h, I w) {
        constexpr int N = decltype(count)::value;
        I d_from = s.d.origin(d), h_from = s.h.origin(h), w_from = s.w.origin(w);
#pragma unroll
        for (int r = 0; r < N; r++) {
            i64 to = (plane + r) * windows + at;
            int tap = (int)numbers[to], across = (int)s.w.kernel, down = (int)s.h.kernel;
            int row = tap / across, td = row / down;
            I place = (d_from + td * s.d.dilation) * s.h.in + h_from +
                      (row - td * down) * s.h.dilation;
            place = place * s.w.in + w_from + (tap - row * across) * s.w.dilation;
            out[to] = x[(plane + r) * size + place];
        }
    });
}
