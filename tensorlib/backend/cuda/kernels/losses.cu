// Cross entropy of logits and classes: no probabilities are kept, only each row's log Σ exp x.
//
// With the class t of a row, class weights w, smoothing ε and C classes:
//     loss = (1 - ε) w[t] (total - x[t]) + ε/C Σ w (total - x)        total = log Σ exp x
//     dx = a exp(x - total) - g (1 - ε) w[t] at t - g ε/C w           a = what is taken off, summed
// A class below 0 is to be ignored. Of half precision are only x and dx.
#include "softmax.cuh"

typedef TYPE_0 T;
typedef Acc<T>::type A;

// What one row or column needs beside its logits.
struct Options {
    const i64* target;
    const A* weight;  // or null
    i64 classes;
    A smoothing;
};

__device__ inline A weight_of(const Options& o, i64 i) { return o.weight ? o.weight[i] : A(1); }

// A position's class; one beyond the last ends the launch with an error, as in torch.
__device__ inline i64 class_at(const Options& o, i64 position) {
    i64 t = o.target[position];
    if (t >= o.classes) __trap();
    return t;
}

// The loss from the log-sum-exp, the target's logit, and Σ w x with Σ w.
__device__ inline A loss_of(const Options& o, const Online<A>& all, i64 t, A logit, A dot, A whole) {
    if (t < 0) return A(0);
    A rest = log(all.sum);
    A loss = (A(1) - o.smoothing) * (rest + (all.top - logit)) * weight_of(o, t);
    if (o.smoothing != A(0))
        loss += o.smoothing / (A)o.classes * (whole * rest + (whole * all.top - dot));
    return loss;
}

// Each position's loss, and total.
KERNEL cross_entropy_rows(const T* x, const i64* target, const A* weight, A* losses, A* total,
                          i64 rows, i64 n, double smoothing) {
    Options o = {target, weight, n, (A)smoothing};
    for (i64 row = first_row(); row < rows; row += row_step()) {
        const T* from = x + row * n;
        Online<A> all;
        A dot = A(0), whole = A(0);
        if (o.smoothing != A(0)) {
            over(from, n, [&](T stored, i64 j) {
                A value = widen(stored), w = weight_of(o, j);
                all.add(value);
                dot += w * value;
                whole += w;
            });
            Pair<A> both = row_sums(dot, whole);
            dot = both.first;
            whole = both.second;
        } else {
            over_packs(from, n, [&](T stored, i64) { all.add(widen(stored)); },
                       [&](const Pack<T>& pack, i64) { all.add(pack); });
        }
        all = row_join(all);
        if (threadIdx.x == 0) {
            i64 t = class_at(o, row);
            A loss = loss_of(o, all, t, t < 0 ? A(0) : widen(from[t]), dot, whole);
            total[row] = all.total();
            losses[row] = loss;
        }
    }
}

KERNEL cross_entropy_columns(const T* x, const i64* target, const A* weight, A* losses, A* total,
                             i64 outer, i64 n, i64 inner, double smoothing) {
    Options o = {target, weight, n, (A)smoothing};
    for (i64 item = blockIdx.x; item < column_items(outer, inner); item += gridDim.x) {
        Column c = column_of(item, inner);
        const T* from = x + c.outer * n * inner + c.inside;
        Online<A> all;
        A dot = A(0), whole = A(0);
        if (c.valid) {
            for (i64 i = threadIdx.y; i < n; i += blockDim.y) {
                A value = widen(from[i * inner]), w = weight_of(o, i);
                all.add(value);
                dot += w * value;
                whole += w;
            }
        }
        all = column_join(all);
        if (o.smoothing != A(0)) {
            dot = column_sum(dot);
            whole = column_sum(whole);
        }
        if (c.valid && threadIdx.y == 0) {
            i64 position = c.outer * inner + c.inside, t = class_at(o, position);
            A loss = loss_of(o, all, t, t < 0 ? A(0) : widen(from[t * inner]), dot, whole);
            total[position] = all.total();
            losses[position] = loss;
        }
    }
}

// out = scale Σ x, in one block; the scale is a number or stands in memory.
KERNEL scaled_sum(const A* x, A* out, i64 n, double scale, const A* scale_at) {
    A sum = A(0);
    over(x, n, [&](A value, i64) { sum += value; });
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[0] = sum * (scale_at ? *scale_at : (A)scale);
}

// --- backward ------------------------------------------------------------------------------------

// What is taken off the target's place, and off every class.
struct Shares {
    A hard, soft;
};
__device__ inline Shares shares(const Options& o, i64 t, A given) {
    Shares s = {A(0), A(0)};
    if (t >= 0) {
        s.hard = given * (A(1) - o.smoothing) * weight_of(o, t);
        s.soft = given * o.smoothing / (A)o.classes;
    }
    return s;
}

// A step of 0 means that one number stands for all. `whole` is the sum of the weights.
KERNEL cross_entropy_rows_back(const A* g, i64 g_step, const A* g_total, i64 total_step,
                               const T* x, const i64* target, const A* total, const A* weight,
                               const A* whole, T* dx, i64 rows, i64 n, double smoothing,
                               double scale, const A* scale_at) {
    Options o = {target, weight, n, (A)smoothing};
    A factor = scale_at ? *scale_at : (A)scale, all = whole ? *whole : (A)n;
    for (i64 row = first_row(); row < rows; row += row_step()) {
        i64 t = class_at(o, row);
        Shares s = shares(o, t, factor * g[row * g_step]);
        A a = s.hard + s.soft * all + g_total[row * total_step], lse = total[row];
        const T* from = x + row * n;
        T* to = dx + row * n;
        if (s.soft != A(0)) {
            map(from, to, n, [&](A value, i64 j) {
                A out = exponential<T>(value - lse) * a - s.soft * weight_of(o, j);
                return j == t ? out - s.hard : out;
            });
        } else {
            A hard = s.hard;
            u32 place = (u32)t;
            map(from, to, n, [=](A value, i64 j) {
                A out = exponential<T>(value - lse) * a;
                return (u32)j == place ? out - hard : out;
            });
        }
    }
}

KERNEL cross_entropy_columns_back(const A* g, i64 g_step, const A* g_total, i64 total_step,
                                  const T* x, const i64* target, const A* total, const A* weight,
                                  const A* whole, T* dx, i64 outer, i64 n, i64 inner,
                                  double smoothing, double scale, const A* scale_at) {
    Options o = {target, weight, n, (A)smoothing};
    A factor = scale_at ? *scale_at : (A)scale, all = whole ? *whole : (A)n;
    for (i64 item = blockIdx.x; item < column_items(outer, inner); item += gridDim.x) {
        Column c = column_of(item, inner);
        if (!c.valid) continue;
        i64 position = c.outer * inner + c.inside, t = class_at(o, position);
        i64 base = c.outer * n * inner + c.inside;
        Shares s = shares(o, t, factor * g[position * g_step]);
        A a = s.hard + s.soft * all + g_total[position * total_step], lse = total[position];
        for (i64 i = threadIdx.y; i < n; i += blockDim.y) {
            A out = exp(widen(x[base + i * inner]) - lse) * a;
            if (s.soft != A(0)) out -= s.soft * weight_of(o, i);
            narrow(i == t ? out - s.hard : out, dx[base + i * inner]);
        }
    }
}
