// Normalization of channels that lie side by side: x is (rows, channels), with one mean and variance
// for each column. Images are so if they are channels last, and features without positions.
//
// Moments and dots are summed over parts of the rows, and a second launch joins them.
#include "columns.cuh"

typedef TYPE_0 T;
typedef TYPE_1 W;  // of weight and bias
typedef Acc<T>::type A;

__device__ inline A inverse_root(A var, double eps) { return A(1) / sqrt(var + (A)eps); }
__device__ inline A or_one(const W* weight, i64 i) { return weight ? (A)widen(weight[i]) : A(1); }

// --- sums over parts of the rows -----------------------------------------------------------------

// Sums of x - k and its square, k being the channel's first element, from which little is lost.
KERNEL channel_moments(const T* x, A* sums, A* squares, i64 rows, i64 channels, i64 parts,
                       i64 length, i64 centred) {
    by_packs<T>(aligned(x), channels, [&](auto count) {
        constexpr int V = decltype(count)::value;
        for (i64 item = blockIdx.x; item < strips<V>(channels) * parts; item += gridDim.x) {
            Strip s = strip_of<V>(item, rows, channels, parts, length);
            A k[V], sum[V], square[V];
#pragma unroll
            for (int i = 0; i < V; i++) sum[i] = square[i] = k[i] = A(0);
            if (s.valid) {
                if (centred)
#pragma unroll
                    for (int i = 0; i < V; i++) k[i] = widen(x[s.column + i]);
                auto load = [&](i64 row) { return load_few<V>(x + row * channels + s.column); };
                walk(s.start + threadIdx.y, s.stop, blockDim.y, load, [&](i64, Few<V, T> few) {
#pragma unroll
                    for (int i = 0; i < V; i++) {
                        A away = widen(few.at[i]) - k[i];
                        sum[i] += away;
                        square[i] += away * away;
                    }
                });
            }
            i64 to = s.part * channels;
            strip_sums<V>(sum, s, channels, [&](i64 c, A total) { sums[to + c] = total; });
            strip_sums<V>(square, s, channels, [&](i64 c, A total) { squares[to + c] = total; });
        }
    });
}

// What a thread loads of two arrays.
template <int V> struct Both {
    Few<V, T> g, x;
};

// Sums of g and of g (x - μ).
KERNEL channel_dots(const T* g, const T* x, const A* mean, A* sums, A* dots, i64 rows,
                    i64 channels, i64 parts, i64 length) {
    by_packs<T>(aligned(x) && aligned(g), channels, [&](auto count) {
        constexpr int V = decltype(count)::value;
        for (i64 item = blockIdx.x; item < strips<V>(channels) * parts; item += gridDim.x) {
            Strip s = strip_of<V>(item, rows, channels, parts, length);
            A middle[V], sum[V], dot[V];
#pragma unroll
            for (int i = 0; i < V; i++) sum[i] = dot[i] = A(0);
            if (s.valid) {
#pragma unroll
                for (int i = 0; i < V; i++) middle[i] = mean[s.column + i];
                auto load = [&](i64 row) {
                    i64 at = row * channels + s.column;
                    return Both<V>{load_few<V>(g + at), load_few<V>(x + at)};
                };
                walk(s.start + threadIdx.y, s.stop, blockDim.y, load, [&](i64, Both<V> both) {
#pragma unroll
                    for (int i = 0; i < V; i++) {
                        A grad = widen(both.g.at[i]);
                        sum[i] += grad;
                        dot[i] += grad * (widen(both.x.at[i]) - middle[i]);
                    }
                });
            }
            i64 to = s.part * channels;
            strip_sums<V>(sum, s, channels, [&](i64 c, A total) { sums[to + c] = total; });
            strip_sums<V>(dot, s, channels, [&](i64 c, A total) { dots[to + c] = total; });
        }
    });
}

// --- joining the parts ---------------------------------------------------------------------------

// use(channel, Σ first, Σ second) over (parts, channels), by one thread for each channel.
template <class F>
__device__ inline void join(const A* first, const A* second, i64 channels, i64 parts, F use) {
    for (i64 item = blockIdx.x; item < strips<1>(channels); item += gridDim.x) {
        Strip s = strip_of<1>(item, parts, channels, 1, parts);
        A sum[1] = {A(0)}, other[1] = {A(0)};
        if (s.valid) {
            auto load = [&](i64 part) {
                i64 at = part * channels + s.column;
                return Pair<A>{first[at], second[at]};
            };
            walk(threadIdx.y, parts, blockDim.y, load, [&](i64, Pair<A> found) {
                sum[0] += found.first;
                other[0] += found.second;
            });
        }
        A left;
        strip_sums<1>(sum, s, channels, [&](i64, A total) { left = total; });
        strip_sums<1>(other, s, channels, [&](i64 c, A total) { use(c, left, total); });
    }
}

KERNEL join_channel_moments(const A* sums, const A* squares, const T* x, A* mean, A* var,
                            i64 channels, i64 parts, i64 rows, i64 centred) {
    join(sums, squares, channels, parts, [&](i64 c, A sum, A square) {
        A shift = centred ? sum / (A)rows : A(0);
        A spread = square / (A)rows - shift * shift;
        mean[c] = centred ? widen(x[c]) + shift : A(0);
        var[c] = spread < A(0) ? A(0) : spread;
    });
}

// dx = g s weight + (x - μ) slope + shift. Without a gradient of mean or variance it is 0.
KERNEL join_channel_dots(const A* sums, const A* dots, const W* weight, const A* var,
                         const A* g_mean, i64 mean_step, const A* g_var, i64 var_step, A* slope,
                         A* shift, W* dw, W* db, i64 channels, i64 parts, i64 rows, double eps,
                         i64 centred) {
    join(sums, dots, channels, parts, [&](i64 c, A sum, A dot) {
        A s = inverse_root(var[c], eps), w = or_one(weight, c);
        A a = g_var ? A(2) * g_var[c * var_step] : A(0), b = g_mean ? g_mean[c * mean_step] : A(0);
        slope[c] = (a - s * s * s * w * dot) / (A)rows;
        shift[c] = centred ? (b - s * w * sum) / (A)rows : A(0);
        if (dw) narrow(dot * s, dw[c]);
        if (db) narrow(sum, db[c]);
    });
}

// --- writing -------------------------------------------------------------------------------------

// What each element of V channels becomes: g scale + (x - middle) slope + shift.
template <int V> struct Lines {
    A scale[V], middle[V], slope[V], shift[V];
};

// Values of V channels, all loaded before one is used.
template <int V, class X>
__device__ inline void fetch(A (&to)[V], const X* from, i64 channel, A otherwise = A(0)) {
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = otherwise;
    if (from)
#pragma unroll
        for (int i = 0; i < V; i++) to[i] = (A)widen(from[channel + i]);
}

// What x is multiplied by where it is normalized: weight / √(σ² + ε).
template <int V>
__device__ inline void fetch_scale(A (&to)[V], const A* var, const W* weight, i64 channel,
                                   double eps) {
    A factor[V];
    fetch(to, var, channel);
    fetch(factor, weight, channel, A(1));
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = inverse_root(to[i], eps) * factor[i];
}

// out = (x - middle) slope + shift, by `lines(channel, Lines&)`.
template <class F>
__device__ inline void each_channel(const T* x, T* out, i64 rows, i64 channels, i64 parts,
                                    i64 length, F lines) {
    by_packs<T>(aligned(x) && aligned(out), channels, [&](auto count) {
        constexpr int V = decltype(count)::value;
        for (i64 item = blockIdx.x; item < strips<V>(channels) * parts; item += gridDim.x) {
            Strip s = strip_of<V>(item, rows, channels, parts, length);
            if (!s.valid) continue;
            Lines<V> l;
            lines(s.column, l);
            auto load = [&](i64 row) { return load_few<V>(x + row * channels + s.column); };
            walk(s.start + threadIdx.y, s.stop, blockDim.y, load, [&](i64 row, Few<V, T> few) {
                Few<V, T> r;
#pragma unroll
                for (int i = 0; i < V; i++)
                    narrow((widen(few.at[i]) - l.middle[i]) * l.slope[i] + l.shift[i], r.at[i]);
                store_few<V>(out + row * channels + s.column, r);
            });
        }
    });
}

KERNEL normalize_channels(const T* x, const W* weight, const W* bias, const A* mean, const A* var,
                          T* out, i64 rows, i64 channels, i64 parts, i64 length, double eps) {
    each_channel(x, out, rows, channels, parts, length, [=](i64 channel, auto& l) {
        fetch(l.middle, mean, channel);
        fetch(l.shift, bias, channel);
        fetch_scale(l.slope, var, weight, channel, eps);
    });
}

// x scale + shift.
KERNEL scale_channels(const T* x, const W* scale, const W* shift, T* out, i64 rows, i64 channels,
                      i64 parts, i64 length) {
    each_channel(x, out, rows, channels, parts, length, [=](i64 channel, auto& l) {
        fetch(l.middle, (const W*)nullptr, channel);
        fetch(l.slope, scale, channel);
        fetch(l.shift, shift, channel);
    });
}

KERNEL normalize_channels_back(const T* g, const T* x, const W* weight, const A* mean,
                               const A* var, const A* slope, const A* shift, T* dx, i64 rows,
                               i64 channels, i64 parts, i64 length, double eps) {
    by_packs<T>(aligned(g) && aligned(x) && aligned(dx), channels, [&](auto count) {
        constexpr int V = decltype(count)::value;
        for (i64 item = blockIdx.x; item < strips<V>(channels) * parts; item += gridDim.x) {
            Strip s = strip_of<V>(item, rows, channels, parts, length);
            if (!s.valid) continue;
            Lines<V> l;
            fetch(l.middle, mean, s.column);
            fetch(l.slope, slope, s.column);
            fetch(l.shift, shift, s.column);
            fetch_scale(l.scale, var, weight, s.column, eps);
            auto load = [&](i64 row) {
                i64 at = row * channels + s.column;
                return Both<V>{load_few<V>(g + at), load_few<V>(x + at)};
            };
            walk(s.start + threadIdx.y, s.stop, blockDim.y, load, [&](i64 row, Both<V> both) {
                Few<V, T> r;
#pragma unroll
                for (int i = 0; i < V; i++) {
                    A rest = (widen(both.x.at[i]) - l.middle[i]) * l.slope[i] + l.shift[i];
                    narrow(widen(both.g.at[i]) * l.scale[i] + rest, r.at[i]);
                }
                store_few<V>(dx + row * channels + s.column, r);
            });
        }
    });
}
