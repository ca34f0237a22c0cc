// Optimizers in one launch: every array of every parameter is read once and written once.
//
// The parameter is P, its gradient G, and what the optimizer keeps of it S; the arithmetic is in A.
// Where there are master weights, they are what is updated, and the parameter is rounded from them.
// A gradient is first multiplied by what `unscale` and `clip` point to; if `found` points to
// something that is not 0 the step does nothing. Options come as numbers, or stand in `live`, where
// they may change between replays of a captured graph. Nothing waits for the host.
#include "tables.cuh"

typedef TYPE_0 P;
typedef TYPE_1 G;
typedef TYPE_2 S;
typedef Acc<P>::type A;

struct Options {
    double at[8];
};
struct Constants {
    A at[9];
};
struct State {
    A at[3];
};

// The gradient with its sign and, where there is one, the penalty on the weights.
__device__ inline A penalized(A p, A d, A sign, A decay) {
    d *= sign;
    return decay != A(0) ? d + decay * p : d;
}

// Adds 1 to the counters that lie in the GPU's memory, unless the step is to be left out.
KERNEL count_steps(const i64* table, i64 rows, const float* found) {
    if (found && *found != 0.0f) return;
    for (i64 i = thread_index(); i < rows; i += thread_count()) {
        float* counter = array_at<float>(table + i * WIDTH, COUNTER);
        if (counter) *counter += 1.0f;
    }
}

template <class Rule>
__device__ inline void walk(const i64* table, const i64* owners, const i64* starts, i64 chunks,
                            const double* steps, double step, const float* unscale,
                            const float* clip, const float* found, Options options) {
    __shared__ Constants shared;
    if (found && *found != 0.0f) return;
    A factor = A(1);
    if (unscale) factor *= (A)*unscale;
    if (clip) factor *= (A)*clip;
    for (i64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const i64* row = table + owners[chunk] * WIDTH;
        const float* counter = array_at<float>(row, COUNTER);
        __syncthreads();
        if (threadIdx.x == 0)
            Rule::prepare(options, counter ? (double)*counter : steps ? steps[owners[chunk]] : step,
                          shared);
        __syncthreads();
        const Constants& constants = shared;
        i64 start = starts[chunk];
        const int n = row[SIZE] - start < CHUNK ? (int)(row[SIZE] - start) : (int)CHUNK;
        P* p = array_at<P>(row, PARAMETER) + start;
        const G* g = array_at<G>(row, GRADIENT) + start;
        A* master = array_at<A>(row, MASTER);
        if (master) master += start;
        S* kept[3];
        bool vectors = aligned_four(p) && aligned_four(g) && (!master || aligned_four(master));
#pragma unroll
        for (int k = 0; k < Rule::states; k++) {
            kept[k] = array_at<S>(row, FIRST + k) + start;
            vectors = vectors && aligned_four(kept[k]);
        }
        const int fours = vectors ? n / 4 : 0;
        for (int i = threadIdx.x; i < fours; i += blockDim.x) {
            Four<P> values = reinterpret_cast<const Four<P>*>(p)[i];
            Four<G> grads = reinterpret_cast<const Four<G>*>(g)[i];
            Four<A> masters;
            if (master) masters = reinterpret_cast<const Four<A>*>(master)[i];
            Four<S> states[3];
#pragma unroll
            for (int k = 0; k < Rule::states; k++)
                states[k] = reinterpret_cast<const Four<S>*>(kept[k])[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                State state;
#pragma unroll
                for (int k = 0; k < Rule::states; k++) state.at[k] = (A)widen(states[k].at[j]);
                A value = master ? masters.at[j] : (A)widen(values.at[j]);
                value = Rule::update(value, (A)widen(grads.at[j]) * factor, state, constants);
                masters.at[j] = value;
                narrow(value, values.at[j]);
#pragma unroll
                for (int k = 0; k < Rule::states; k++) narrow(state.at[k], states[k].at[j]);
            }
            reinterpret_cast<Four<P>*>(p)[i] = values;
            if (master) reinterpret_cast<Four<A>*>(master)[i] = masters;
#pragma unroll
            for (int k = 0; k < Rule::states; k++)
                reinterpret_cast<Four<S>*>(kept[k])[i] = states[k];
        }
        for (int i = 4 * fours + threadIdx.x; i < n; i += blockDim.x) {
            State state;
            for (int k = 0; k < Rule::states; k++) state.at[k] = (A)widen(kept[k][i]);
            A value = master ? master[i] : (A)widen(p[i]);
            value = Rule::update(value, (A)widen(g[i]) * factor, state, constants);
            if (master) master[i] = value;
            narrow(value, p[i]);
            for (int k = 0; k < Rule::states; k++) narrow(state.at[k], kept[k][i]);
        }
    }
}

#define RULE(name, Type)                                                                         \
    KERNEL name(const i64* table, const i64* owners, const i64* starts, i64 chunks,              \
                const double* steps, double step, const float* unscale, const float* clip,       \
                const float* found, const double* live, double a, double b, double c, double d, double e, double f,  \
                double g, double h) {                                                            \
        Options options = {{a, b, c, d, e, f, g, h}};                                            \
        for (int i = 0; live && i < 8; i++) options.at[i] = live[i];                             \
        walk<Type>(table, owners, starts, chunks, steps, step, unscale, clip, found, options);   \
    }

// A rule whose constants are its options, and what a mean with the fourth as its memory takes in.
struct AsGiven {
    __device__ static void prepare(const Options& o, double, Constants& c) {
        for (int i = 0; i < 8; i++) c.at[i] = (A)o.at[i];
        c.at[8] = (A)(1.0 - o.at[3]);
    }
};

// --- the rules; their options are those of the CPU's ----------------------------------------------

// sign, weight decay, lr
struct Sgd : AsGiven {
    static constexpr int states = 0;
    __device__ static A update(A p, A d, State&, const Constants& c) {
        return p - c.at[2] * penalized(p, d, c.at[0], c.at[1]);
    }
};

// sign, weight decay, lr, momentum, 1 - dampening, nesterov
struct SgdMomentum : AsGiven {
    static constexpr int states = 1;
    __device__ static A update(A p, A d, State& s, const Constants& c) {
        d = penalized(p, d, c.at[0], c.at[1]);
        A v = s.at[0] * c.at[3] + c.at[4] * d;
        s.at[0] = v;
        return p - c.at[2] * (c.at[5] != A(0) ? v * c.at[3] + d : v);
    }
};

// sign, L2 penalty, lr, beta 1, beta 2, eps, decoupled weight decay
template <bool amsgrad> struct Adam {
    static constexpr int states = amsgrad ? 3 : 2;
    __device__ static void prepare(const Options& o, double step, Constants& c) {
        c.at[0] = (A)o.at[0];
        c.at[1] = (A)o.at[1];
        c.at[2] = (A)(o.at[2] / (1.0 - pow(o.at[3], step)));         // the rate
        c.at[3] = (A)(1.0 - o.at[3]);                                // of the new gradient
        c.at[4] = (A)o.at[4];
        c.at[5] = (A)o.at[5];
        c.at[6] = (A)(1.0 - o.at[2] * o.at[6]);                      // kept of the weights
        c.at[7] = (A)(1.0 / sqrt(1.0 - pow(o.at[4], step)));         // of the root
        c.at[8] = (A)(1.0 - o.at[4]);                                // of the new square
    }
    __device__ static A update(A p, A d, State& s, const Constants& c) {
        A x = p * c.at[6];
        d = penalized(x, d, c.at[0], c.at[1]);
        A m = s.at[0] + (d - s.at[0]) * c.at[3];
        A v = s.at[1] * c.at[4] + c.at[8] * (d * d);
        s.at[0] = m;
        s.at[1] = v;
        if (amsgrad) {
            v = s.at[2] >= v ? s.at[2] : v;  // NaN in v stays, there and here
            s.at[2] = v;
        }
        return x - c.at[2] * (m / (sqrt(v) * c.at[7] + c.at[5]));
    }
};

// sign, weight decay, lr, rho, eps
struct Adadelta : AsGiven {
    static constexpr int states = 2;
    __device__ static A update(A p, A d, State& s, const Constants& c) {
        d = penalized(p, d, c.at[0], c.at[1]);
        A rho = c.at[3], fresh = c.at[8], eps = c.at[4];
        A v = s.at[0] * rho + fresh * (d * d), u = s.at[1];
        d = sqrt(u + eps) / sqrt(v + eps) * d;
        s.at[0] = v;
        s.at[1] = u * rho + fresh * (d * d);
        return p - c.at[2] * d;
    }
};

// sign, weight decay, lr, decay of lr, eps
struct Adagrad {
    static constexpr int states = 1;
    __device__ static void prepare(const Options& o, double step, Constants& c) {
        c.at[0] = (A)o.at[0];
        c.at[1] = (A)o.at[1];
        c.at[2] = (A)(o.at[2] / (1.0 + (step - 1.0) * o.at[3]));
        c.at[4] = (A)o.at[4];
    }
    __device__ static A update(A p, A d, State& s, const Constants& c) {
        d = penalized(p, d, c.at[0], c.at[1]);
        s.at[0] += d * d;
        return p - c.at[2] * (d / (sqrt(s.at[0]) + c.at[4]));
    }
};

// sign, weight decay, lr, alpha, eps, momentum
template <bool centered, bool momentum> struct RmsProp : AsGiven {
    static constexpr int states = 1 + centered + momentum;
    __device__ static A update(A p, A d, State& s, const Constants& c) {
        d = penalized(p, d, c.at[0], c.at[1]);
        A fresh = c.at[8], v = s.at[0] * c.at[3] + fresh * (d * d);
        s.at[0] = v;
        if (centered) {
            A& average = s.at[momentum ? 2 : 1];
            average += (d - average) * fresh;
            v -= average * average;
        }
        d = d / (sqrt(v) + c.at[4]);
        if (momentum) {
            d = s.at[1] * c.at[5] + d;
            s.at[1] = d;
        }
        return p - c.at[2] * d;
    }
};

RULE(sgd, Sgd)
RULE(sgd_momentum, SgdMomentum)
RULE(adam, Adam<false>)
RULE(adam_amsgrad, Adam<true>)
RULE(adadelta, Adadelta)
RULE(adagrad, Adagrad)
typedef RmsProp<false, false> RmsPropPlain;
typedef RmsProp<false, true> RmsPropMomentum;
typedef RmsProp<true, false> RmsPropCentered;
typedef RmsProp<true, true> RmsPropBoth;
RULE(rmsprop, RmsPropPlain)
RULE(rmsprop_momentum, RmsPropMomentum)
RULE(rmsprop_centered, RmsPropCentered)
RULE(rmsprop_centered_momentum, RmsPropBoth)
