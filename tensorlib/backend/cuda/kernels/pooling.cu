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
    bool packed = aligned(x) && aligned(out) && aligned(numbers);
    if (s.tiled() && packed) {
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
    places(s, packed, s.d.out, s.h.out, s.w.out, [&](auto some, I at, I d, I h, I w) {
        constexpr int N = decltype(some)::size;
        I d_from = s.d.origin(d), h_from = s.h.origin(h), w_from = s.w.origin(w);
        Span ds = s.d.taps(d_from), hs = s.h.taps(h_from), ws = s.w.taps(w_from);
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
                    Few<N, T> values = some.read(x, size, place);
#pragma unroll
                    for (int r = 0; r < N; r++) {
                        A value = widen(values.at[r]);
                        if (wins(value, best[r])) {
                            best[r] = value;
                            won[r] = (int)tap;
                        }
                    }
                }
            }
        }
        Few<N, T> largest;
        Few<N, Number> taps;
#pragma unroll
        for (int r = 0; r < N; r++) {
            narrow(best[r], largest.at[r]);
            taps.at[r] = (Number)won[r];
        }
        some.write(out, windows, at, largest);
        some.write(numbers, windows, at, taps);
    });
}

// Each element is the sum, in their order, of the windows whose number names it.
KERNEL window_scatter(const T* g, const Number* numbers, T* out, SHAPE) {
    Shape s = SHAPE_GIVEN;
    bool packed = aligned(g) && aligned(out) && aligned(numbers);
    if (s.tiled() && packed) {
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
    places(s, packed, s.d.in, s.h.in, s.w.in, [&](auto some, I at, I d, I h, I w) {
        constexpr int N = decltype(some)::size;
        Span ds = s.d.windows(d), hs = s.h.windows(h), ws = s.w.windows(w);
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
                    Few<N, T> values = some.read(g, windows, row + ow);
                    Few<N, Number> won = some.read(numbers, windows, row + ow);
#pragma unroll
                    for (int r = 0; r < N; r++)
                        sums[r] += (int)won.at[r] == (int)tap ? widen(values.at[r]) : A(0);
                }
            }
        }
        Few<N, T> total;
#pragma unroll
        for (int r = 0; r < N; r++) narrow(sums[r], total.at[r]);
        some.write(out, size, at, total);
    });
}

// The element of each window that its number names.
KERNEL window_gather(const T* x, const Number* numbers, T* out, SHAPE) {
    Shape s = SHAPE_GIVEN;
    bool packed = aligned(x) && aligned(out) && aligned(numbers);
    I size = s.inputs(), windows = s.outputs();
    places(s, packed, s.d.out, s.h.out, s.w.out, [&](auto some, I at, I d, I h, I w) {
        constexpr int N = decltype(some)::size;
        I d_from = s.d.origin(d), h_from = s.h.origin(h), w_from = s.w.origin(w);
#pragma unroll
        for (int r = 0; r < N; r++) {
            i64 to = some.at(windows, at, r);
            int tap = (int)numbers[to], across = (int)s.w.kernel, down = (int)s.h.kernel;
            int row = tap / across, td = row / down;
            I place = (d_from + td * s.d.dilation) * s.h.in + h_from +
                      (row - td * down) * s.h.dilation;
            place = place * s.w.in + w_from + (tap - row * across) * s.w.dilation;
            out[to] = x[some.at(size, place, r)];
        }
    });
}
