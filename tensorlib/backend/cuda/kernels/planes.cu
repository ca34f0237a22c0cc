// Normalization of planes: x is (planes, P), and one mean and variance stand for a group of planes.
//
//     batch norm   planes (N, C)              group of plane q: q % C       weight[q % C]
//     group norm   planes (N, groups, S)      group of plane q: q / S       weight[q % (groups S)]
//
// that is, group q / S % G and weight q % size. Moments and dots are first summed over parts of
// planes, or of columns where P is small, into (R0, groups, R1); a second launch joins these.
#include "rows.cuh"

typedef TYPE_0 T;
typedef TYPE_1 W;  // of weight and bias
typedef Acc<T>::type A;

__device__ inline A inverse_root(A var, double eps) { return A(1) / sqrt(var + (A)eps); }
__device__ inline A or_one(const W* weight, i64 i) { return weight ? (A)widen(weight[i]) : A(1); }
__device__ inline A or_zero(const W* bias, i64 i) { return bias ? (A)widen(bias[i]) : A(0); }

// a / b and a % b of numbers that are not negative: in 32 bits where they fit, a third of the work.
__device__ inline i64 quotient(i64 a, i64 b) {
    return (a | b) >> 32 ? a / b : (i64)((u32)a / (u32)b);
}
__device__ inline i64 remainder(i64 a, i64 b) {
    return (a | b) >> 32 ? a % b : (i64)((u32)a % (u32)b);
}
__device__ inline i64 group_of(i64 plane, i64 S, i64 groups) {
    return remainder(S == 1 ? plane : quotient(plane, S), groups);
}

// --- sums over parts of planes, and of columns ---------------------------------------------------

// Sums of x - k and its square, k being the group's first element, from which little is lost.
KERNEL plane_moments(const T* x, A* sums, A* squares, i64 planes, i64 positions, i64 chunks,
                     i64 length, i64 S, i64 groups, i64 centred) {
    for (i64 item = first_row(); item < planes * chunks; item += row_step()) {
        i64 plane = quotient(item, chunks), start = (item - plane * chunks) * length;
        i64 count = positions - start < length ? positions - start : length;
        A k = centred ? widen(x[group_of(plane, S, groups) * S * positions]) : A(0), sum = A(0),
          square = A(0);
        over(x + plane * positions + start, count, [&](T value, i64) {
            A away = widen(value) - k;
            sum += away;
            square += away * away;
        });
        Pair<A> both = row_sums(sum, square);
        if (threadIdx.x == 0) {
            sums[item] = both.first;
            squares[item] = both.second;
        }
    }
}

KERNEL column_moments(const T* x, A* sums, A* squares, i64 n, i64 columns, i64 positions,
                      i64 parts, i64 length, i64 centred) {
    for (i64 item = blockIdx.x; item < column_items(parts, columns); item += gridDim.x) {
        Column c = column_of(item, columns);
        i64 start = c.outer * length, stop = start + length < n ? start + length : n;
        A k = A(0), sum = A(0), square = A(0);
        if (c.valid) {
            if (centred) k = widen(x[c.inside / positions * positions]);
            for (i64 i = start + threadIdx.y; i < stop; i += blockDim.y) {
                A away = widen(x[i * columns + c.inside]) - k;
                sum += away;
                square += away * away;
            }
        }
        sum = column_sum(sum);
        square = column_sum(square);
        if (c.valid && threadIdx.y == 0) {
            sums[c.outer * columns + c.inside] = sum;
            squares[c.outer * columns + c.inside] = square;
        }
    }
}

// Sums of g and of g (x - μ).
KERNEL plane_dots(const T* g, const T* x, const A* mean, A* sums, A* dots, i64 planes,
                  i64 positions, i64 chunks, i64 length, i64 S, i64 groups) {
    for (i64 item = first_row(); item < planes * chunks; item += row_step()) {
        i64 plane = quotient(item, chunks), start = (item - plane * chunks) * length;
        i64 count = positions - start < length ? positions - start : length;
        i64 at = plane * positions + start;
        A middle = mean[group_of(plane, S, groups)], sum = A(0), dot = A(0);
        over(g + at, x + at, count, [&](T a, T b, i64) {
            sum += widen(a);
            dot += widen(a) * (widen(b) - middle);
        });
        Pair<A> both = row_sums(sum, dot);
        if (threadIdx.x == 0) {
            sums[item] = both.first;
            dots[item] = both.second;
        }
    }
}

KERNEL column_dots(const T* g, const T* x, const A* mean, A* sums, A* dots, i64 n, i64 columns,
                   i64 positions, i64 parts, i64 length) {
    for (i64 item = blockIdx.x; item < column_items(parts, columns); item += gridDim.x) {
        Column c = column_of(item, columns);
        i64 start = c.outer * length, stop = start + length < n ? start + length : n;
        A sum = A(0), dot = A(0);
        if (c.valid) {
            A middle = mean[c.inside / positions];
            for (i64 i = start + threadIdx.y; i < stop; i += blockDim.y) {
                A grad = widen(g[i * columns + c.inside]);
                sum += grad;
                dot += grad * (widen(x[i * columns + c.inside]) - middle);
            }
        }
        sum = column_sum(sum);
        dot = column_sum(dot);
        if (c.valid && threadIdx.y == 0) {
            sums[c.outer * columns + c.inside] = sum;
            dots[c.outer * columns + c.inside] = dot;
        }
    }
}

// --- joining the parts: (outer, groups, inner) over outer and inner -------------------------------

KERNEL join_moments(const A* sums, const A* squares, const T* x, A* mean, A* var, i64 outer,
                    i64 groups, i64 inner, i64 stride, i64 count, i64 centred) {
    for (i64 group = first_row(); group < groups; group += row_step()) {
        A sum = A(0), square = A(0);
        for (i64 r = threadIdx.x; r < outer * inner; r += blockDim.x) {
            i64 row = quotient(r, inner), i = (row * groups + group) * inner + r - row * inner;
            sum += sums[i];
            square += squares[i];
        }
        Pair<A> both = row_sums(sum, square);
        if (threadIdx.x == 0) {
            A shift = centred ? both.first / (A)count : A(0);
            A spread = both.second / (A)count - shift * shift;
            mean[group] = centred ? widen(x[group * stride]) + shift : A(0);
            var[group] = spread < A(0) ? A(0) : spread;
        }
    }
}

// Part i belongs to plane i / chunks. Both sums take its weight if there is one, and the dots the
// 1/√(σ² + ε) of its group if the variances are given.
KERNEL join_dots(const A* sums, const A* dots, A* sum_out, A* dot_out, i64 outer, i64 kept,
                 i64 inner, i64 chunks, const W* weight, i64 size, const A* var, i64 S, i64 groups,
                 double eps) {
    for (i64 at = first_row(); at < kept; at += row_step()) {
        A sum = A(0), dot = A(0);
        for (i64 r = threadIdx.x; r < outer * inner; r += blockDim.x) {
            i64 row = quotient(r, inner), i = (row * kept + at) * inner + r - row * inner;
            A w = A(1), s = A(1);
            if (weight || var) {
                i64 plane = quotient(i, chunks);
                if (weight) w = (A)widen(weight[remainder(plane, size)]);
                if (var) s = inverse_root(var[group_of(plane, S, groups)], eps);
            }
            sum += w * sums[i];
            dot += w * s * dots[i];
        }
        Pair<A> both = row_sums(sum, dot);
        if (threadIdx.x == 0) {
            sum_out[at] = both.first;
            dot_out[at] = both.second;
        }
    }
}

// dx = g s weight + (x - μ) slope + shift. A weight here is one per group, not yet in the sums;
// then dw and db are wanted too. Without a gradient of mean or variance it is 0.
KERNEL coefficients(const A* sums, const A* dots, const W* weight, const A* var, const A* g_mean,
                    i64 mean_step, const A* g_var, i64 var_step, A* slope, A* shift, W* dw, W* db,
                    i64 groups, i64 count, double eps, i64 centred) {
    for (i64 i = thread_index(); i < groups; i += thread_count()) {
        A s = inverse_root(var[i], eps), w = or_one(weight, i);
        A a = g_var ? A(2) * g_var[i * var_step] : A(0), b = g_mean ? g_mean[i * mean_step] : A(0);
        slope[i] = (a - s * s * s * w * dots[i]) / (A)count;
        shift[i] = centred ? (b - s * w * sums[i]) / (A)count : A(0);
        if (dw) narrow(dots[i] * s, dw[i]);
        if (db) narrow(sums[i], db[i]);
    }
}

// --- writing, by planes, and by elements where planes are short ------------------------------------

// What each element of a plane becomes: g scale + (x - middle) slope + shift.
struct Line {
    A scale, middle, slope, shift;
};

// Where a walk along the elements is: at which plane's group and weight, and how far from its end.
struct Walk {
    i64 positions, S, groups, size;
    i64 group, at, part;  // the part-th of the S planes side by side of a group
    int left;

    __device__ void start(i64 i) {
        i64 plane = quotient(i, positions), set = S == 1 ? plane : quotient(plane, S);
        left = (int)(positions - (i - plane * positions));
        part = plane - set * S;
        group = remainder(set, groups);
        at = S == 1 && size == groups ? group : remainder(plane, size);
    }
    // One element on; whether another plane begins there.
    __device__ bool next() {
        if (--left) return false;
        left = (int)positions;
        if (++at == size) at = 0;
        if (++part == S) {
            part = 0;
            if (++group == groups) group = 0;
        }
        return true;
    }
};

// out = g scale + (x - middle) slope + shift, by `line(group, at)`; g may be null. Packs of 16
// bytes go across planes, and divide once to find where they begin.
template <class F>
__device__ inline void each_line(const T* g, const T* x, T* out, i64 planes, i64 positions, i64 S,
                                 i64 groups, i64 size, F line) {
    i64 count = planes * positions, start = first_pack(x, (const T*)out, count);
    if (g && first_pack(g, (const T*)out, count) != start) start = count;
    i64 packs = (count - start) / Pack<T>::size, done = start + packs * Pack<T>::size;
    Walk walk{positions, S, groups, size};
    auto one = [&](i64 i) {
        walk.start(i);
        Line l = line(walk.group, walk.at);
        A value = (widen(x[i]) - l.middle) * l.slope;
        narrow((g ? widen(g[i]) * l.scale + value : value) + l.shift, out[i]);
    };
    for (i64 i = thread_index(); i < start; i += thread_count()) one(i);
    for (i64 i = thread_index(); i < packs; i += thread_count()) {
        i64 from = start + i * Pack<T>::size;
        Pack<T> a = load_pack(x + from), b = g ? load_pack(g + from) : a, r;
        walk.start(from);
        Line l = line(walk.group, walk.at);
#pragma unroll
        for (int k = 0; k < Pack<T>::size; k++) {
            A value = (widen(a.at[k]) - l.middle) * l.slope;
            narrow((g ? widen(b.at[k]) * l.scale + value : value) + l.shift, r.at[k]);
            if (k + 1 < Pack<T>::size && walk.next()) l = line(walk.group, walk.at);
        }
        store_pack(out + from, r);
    }
    for (i64 i = done + thread_index(); i < count; i += thread_count()) one(i);
}

KERNEL normalize_planes(const T* x, const W* weight, const W* bias, const A* mean, const A* var,
                        T* out, i64 planes, i64 positions, i64 S, i64 groups, i64 size,
                        double eps) {
    for (i64 plane = first_row(); plane < planes; plane += row_step()) {
        i64 group = group_of(plane, S, groups), at = remainder(plane, size);
        A middle = mean[group], scale = inverse_root(var[group], eps) * or_one(weight, at);
        A rest = or_zero(bias, at);
        map(x + plane * positions, out + plane * positions, positions,
            [=](A value, i64) { return (value - middle) * scale + rest; });
    }
}

KERNEL normalize_each(const T* x, const W* weight, const W* bias, const A* mean, const A* var,
                      T* out, i64 planes, i64 positions, i64 S, i64 groups, i64 size, double eps) {
    each_line((const T*)nullptr, x, out, planes, positions, S, groups, size,
              [=](i64 group, i64 at) {
        return Line{A(0), mean[group], inverse_root(var[group], eps) * or_one(weight, at),
                    or_zero(bias, at)};
    });
}

KERNEL normalize_planes_back(const T* g, const T* x, const W* weight, const A* mean, const A* var,
                             const A* slope, const A* shift, T* dx, i64 planes, i64 positions,
                             i64 S, i64 groups, i64 size, double eps) {
    for (i64 plane = first_row(); plane < planes; plane += row_step()) {
        i64 group = group_of(plane, S, groups);
        A middle = mean[group], a = slope[group], b = shift[group];
        A scale = inverse_root(var[group], eps) * or_one(weight, remainder(plane, size));
        map(g + plane * positions, x + plane * positions, dx + plane * positions, positions,
            [=](A grad, A value, i64) { return grad * scale + (value - middle) * a + b; });
    }
}

KERNEL normalize_each_back(const T* g, const T* x, const W* weight, const A* mean, const A* var,
                           const A* slope, const A* shift, T* dx, i64 planes, i64 positions,
                           i64 S, i64 groups, i64 size, double eps) {
    each_line(g, x, dx, planes, positions, S, groups, size, [=](i64 group, i64 at) {
        return Line{inverse_root(var[group], eps) * or_one(weight, at), mean[group], slope[group],
                    shift[group]};
    });
}

// x scale + shift, with one of each per channel.
KERNEL scale_planes(const T* x, const W* scale, const W* shift, T* out, i64 planes, i64 positions,
                    i64 channels) {
    for (i64 plane = first_row(); plane < planes; plane += row_step()) {
        i64 channel = remainder(plane, channels);
        A a = (A)widen(scale[channel]), b = (A)widen(shift[channel]);
        map(x + plane * positions, out + plane * positions, positions,
            [=](A value, i64) { return value * a + b; });
    }
}

KERNEL scale_each(const T* x, const W* scale, const W* shift, T* out, i64 planes, i64 positions,
                  i64 channels) {
    each_line((const T*)nullptr, x, out, planes, positions, 1, channels, channels,
              [=](i64 channel, i64) {
        return Line{A(0), A(0), (A)widen(scale[channel]), (A)widen(shift[channel])};
    });
}

// --- running statistics --------------------------------------------------------------------------

// running = (1 - m) running + m batch, where the batch's variance counts `correction` times. The
// count, if there is one, grows by 1; `averages` makes m its inverse. It is of one block, all of
// whose threads have read the count before it changes.
KERNEL track_statistics(T* running_mean, T* running_var, i64* count, const A* mean, const A* var,
                        i64 channels, double momentum, double correction, i64 averages) {
    i64 batches = count ? *count + 1 : 0;
    double m = averages ? 1.0 / (double)batches : momentum;
    A kept = (A)(1.0 - m), taken = (A)m, unbiased = (A)(m * correction);
    __syncthreads();
    if (count && threadIdx.x == 0) *count = batches;
    for (i64 i = threadIdx.x; i < channels; i += blockDim.x) {
        narrow(widen(running_mean[i]) * kept + mean[i] * taken, running_mean[i]);
        narrow(widen(running_var[i]) * kept + var[i] * unbiased, running_var[i]);
    }
}
