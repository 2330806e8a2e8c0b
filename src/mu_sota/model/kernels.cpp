// The model's inner loops for a CPU, in float32: attention with many small heads, the feed-forward network, the
// cross-entropy of a large vocabulary, and the whole model for one new token.
//
// Each function has its equation in PyTorch in `attention.py`, `model.py` or `loss.py`; the tests hold one against the
// other. Plain C++ with the vector extension of GCC and Clang, compiled by `kernel_library.py` for the processor that it
// runs on.
//
// Legend: B batch, T time, H heads (or blocks), K size of a head, D state, F width inside the feed-forward network,
// P = T filled up to vectors. Inside a head, values lie [K][P]: a vector is one component of LANES tokens.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
#define INLINE __attribute__((always_inline))

constexpr float LN2 = 0.6931471805599453f;

static inline vec load(const float* from) {
    vec value;
    memcpy(&value, from, sizeof value);
    return value;
}
static inline void store(float* to, vec value) { memcpy(to, &value, sizeof value); }
static inline vec splat(float value) { return value - vec{}; }
static inline float sum(vec value) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
}
static inline ivec lanes_from(int first) {
    ivec value;
    for (int lane = 0; lane < LANES; lane++) value[lane] = first + lane;
    return value;
}

// 2^x to 2e-7 of itself for x <= 127, and 2^-126 for all that is less; 2^0 is 1. NaN stays NaN. The polynomial has the
// smallest largest error of its degree over -1/2 to 1/2 among those that are 1 at 0.
static inline vec exp2(vec x) {
    x = x < -126.f ? splat(-126.f) : x;
    const vec shifted = x + 12582912.f;  // 1.5 * 2^23: the nearest integer stands in the low bits
    const vec f = x - (shifted - 12582912.f);
    vec p = splat(1.3264727e-3f);
    p = p * f + 9.6715130e-3f;
    p = p * f + 5.5507336e-2f;
    p = p * f + 2.4022242e-1f;
    p = p * f + 6.9314700e-1f;
    p = p * f + 1.f;
    return (vec)((uvec)p + ((uvec)shifted << 23));
}

// Lanes of a, and from LANES on those of b.
static inline vec shuffle(vec a, vec b, ivec from) {
#ifdef __clang__
    vec result;
    for (int lane = 0; lane < LANES; lane++) result[lane] = from[lane] < LANES ? a[from[lane]] : b[from[lane] - LANES];
    return result;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Memory of one thread, aligned to vectors.
class Scratch {
  public:
    explicit Scratch(size_t floats) : memory(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)) {}
    ~Scratch() { std::free(memory); }
    Scratch(const Scratch&) = delete;
    float* take(size_t floats) {
        float* start = (float*)memory + taken;
        taken += floats;
        return start;
    }

  private:
    void* memory;
    size_t taken = 0;
};

// While it lives, its thread takes numbers below 2^-126 as 0. Attention that is sure of itself makes many of them, and
// on x86 an operation on one costs as much as a hundred others.
class NoSubnormals {
#ifdef __SSE__
  public:
    NoSubnormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }  // FTZ and DAZ
    ~NoSubnormals() { _mm_setcsr(before); }

  private:
    const unsigned before;
#else
  public:
    NoSubnormals() {}  // not trivial, so that a variable of it counts as used
#endif
};

// Floats from one component of a head to the next: whole vectors, and an odd number of them, so that the components of
// a token do not fall on the same few lines of the cache.
static inline int row_length(int T) { return ((T + LANES - 1) / LANES | 1) * LANES; }

// ---------------------------------------------------------------------------------------------------------------------
// Attention of one head. Queries come multiplied by log2(e) / sqrt(K): scores are exponents of 2.

// Outputs [K][P], the log2 of each row's sum of 2^score, and, if asked for, each row's entropy in nats. A vector holds
// LANES queries; keys come one by one.
template <int K>
static void attend(const float* query, const float* key, const float* value, float* output, float* log_sum,
                   float* entropy, int T, int P) {
    float longest_key = 0;
    for (int i = 0; i < T; i += LANES) {
        const ivec row = lanes_from(i);
        vec q[K], mixed[K], square{}, key_square{}, total{}, score_sum{}, top{};
        for (int c = 0; c < K; c++) {
            q[c] = load(query + c * P + i);
            mixed[c] = vec{};
            square += q[c] * q[c];
            key_square += load(key + c * P + i) * load(key + c * P + i);
        }
        for (int lane = 0; lane < LANES; lane++) {  // the longest key that each row sees
            longest_key = key_square[lane] > longest_key ? key_square[lane] : longest_key;
            square[lane] *= longest_key;
        }
        auto scores = [&](int j) INLINE {
            vec s = q[0] * key[j];
            for (int c = 1; c < K; c++) s += q[c] * key[c * P + j];
            return s;
        };
        // |q k| <= |q| |k|: where that is at most 60, no exponential leaves the range of a float, and the row's maximum
        // need not be known. (Written so that NaN takes the other way.) Each row by itself, whatever comes after it.
        const ivec small = square <= 3600.f;
        bool all_small = true;
        for (int lane = 0; lane < LANES; lane++) all_small = all_small && small[lane];
        if (!all_small) {
            top = scores(0);
            for (int j = 1; j < i + LANES; j++) {
                const vec s = scores(j);
                top = (row >= j) & ~(ivec)(s <= top) ? s : top;
            }
            top = small ? vec{} : top;
        }
        auto add = [&](int j, bool masked) INLINE {
            const vec s = scores(j) - top;
            const vec p = exp2(s);
            // What a row does not see is left out, rather than taken times 0: it may be infinite.
            total += masked ? (row >= j ? p : vec{}) : p;
            score_sum += masked ? (row >= j ? p * s : vec{}) : p * s;
            for (int c = 0; c < K; c++) {
                const vec term = p * value[c * P + j];
                mixed[c] += masked ? (row >= j ? term : vec{}) : term;
            }
        };
        for (int j = 0; j < i; j++) add(j, false);
        for (int j = i; j < i + LANES; j++) add(j, true);
        vec log_total;
        for (int lane = 0; lane < LANES; lane++) log_total[lane] = log2f(total[lane]);
        for (int c = 0; c < K; c++) store(output + c * P + i, mixed[c] / total);
        store(log_sum + i, top + log_total);
        if (entropy) store(entropy + i, (log_total - score_sum / total) * LN2);
    }
}

// Gradients [K][P] by query, key and value. With d = grad_output . value, the gradient by a score (in nats) is
// p (d - offset - slope * score): offset and slope of each row hold what the softmax and the entropy take off. Rows of
// queries go ROWS at a time, and a vector holds LANES keys.
template <int K, int ROWS>
static void attend_backward(const float* query, const float* key, const float* value, const float* grad_output,
                            const float* log_sum, const float* offset, const float* slope, float* grad_query,
                            float* grad_key, float* grad_value, float scale, int T, int P) {
    memset(grad_query, 0, sizeof(float) * K * P);
    memset(grad_key, 0, sizeof(float) * K * P);
    memset(grad_value, 0, sizeof(float) * K * P);
    for (int i = 0; i < T; i += ROWS) {
        vec by_query[ROWS][K];
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < K; c++) by_query[r][c] = vec{};
        auto add = [&](int j, bool masked) INLINE {
            const ivec column = lanes_from(j);
            vec k[K], v[K], by_key[K], by_value[K];
            for (int c = 0; c < K; c++) {
                k[c] = load(key + c * P + j);
                v[c] = load(value + c * P + j);
                by_key[c] = load(grad_key + c * P + j);
                by_value[c] = load(grad_value + c * P + j);
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                vec s = k[0] * query[i + r], d = v[0] * grad_output[i + r];
                for (int c = 1; c < K; c++) {
                    s += k[c] * query[c * P + i + r];
                    d += v[c] * grad_output[c * P + i + r];
                }
                vec p = exp2(s - log_sum[i + r]);
                if (masked) p = column <= i + r ? p : vec{};
                const vec by_score = p * (d - offset[i + r] - s * slope[i + r]);
                for (int c = 0; c < K; c++) {
                    by_query[r][c] += by_score * k[c];
                    by_key[c] += by_score * query[c * P + i + r];
                    by_value[c] += p * grad_output[c * P + i + r];
                }
            }
            for (int c = 0; c < K; c++) {
                store(grad_key + c * P + j, by_key[c]);
                store(grad_value + c * P + j, by_value[c]);
            }
        };
        int j = 0;
        for (; j + LANES <= i + 1; j += LANES) add(j, false);
        for (; j < i + ROWS; j += LANES) add(j, true);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < K; c++) grad_query[c * P + i + r] = sum(by_query[r][c]) * scale;
    }
    for (int x = 0; x < K * P; x++) grad_key[x] *= LN2;
}

// Sizes of heads that have loops of their own; a size between two is filled up with zeros.
static int padded_size(int K) { return K <= 4 ? 4 : K <= 8 ? 8 : 16; }

static void attend(int K, const float* query, const float* key, const float* value, float* output, float* log_sum,
                   float* entropy, int T, int P) {
    auto* run = K == 4 ? attend<4> : K == 8 ? attend<8> : attend<16>;
    run(query, key, value, output, log_sum, entropy, T, P);
}

static void attend_backward(int K, const float* query, const float* key, const float* value, const float* grad_output,
                            const float* log_sum, const float* offset, const float* slope, float* grad_query,
                            float* grad_key, float* grad_value, float scale, int T, int P) {
    auto* run = K == 4 ? attend_backward<4, 2> : K == 8 ? attend_backward<8, 2> : attend_backward<16, 1>;
    run(query, key, value, grad_output, log_sum, offset, slope, grad_query, grad_key, grad_value, scale, T, P);
}

// [T] rows of K values, `stride` apart, to [padded K][P] times `factor`, with zeros around.
static void gather(const float* from, size_t stride, int K, int T, float factor, float* to, int padded, int P) {
    memset(to, 0, sizeof(float) * padded * P);
    for (int t = 0; t < T; t++)
        for (int c = 0; c < K; c++) to[c * P + t] = from[t * stride + c] * factor;
}
// Queries (times `factor`), keys and values of a head from [T, 3, H, K].
static void gather_heads(const float* from, int H, int K, int T, float factor, float* query, float* key, float* value,
                         int padded, int P) {
    const size_t stride = (size_t)3 * H * K;
    gather(from, stride, K, T, factor, query, padded, P);
    gather(from + H * K, stride, K, T, 1, key, padded, P);
    gather(from + 2 * H * K, stride, K, T, 1, value, padded, P);
}
// And back to rows.
static void scatter(const float* from, int P, int K, int T, float* to, size_t stride) {
    for (int t = 0; t < T; t++)
        for (int c = 0; c < K; c++) to[t * stride + c] = from[c * P + t];
}

// Rotary positions of one text, from [2, texts, T, K / 2], cosines and then sines, to [2][K / 2][P].
static void gather_turns(const float* turns, int text, int texts, int K, int T, float* to, int P) {
    const int half = K / 2;
    for (int part = 0; part < 2; part++)
        gather(turns + (size_t)(part * texts + text) * T * half, half, half, T, 1, to + part * half * P, half, P);
}
// Two heads [K][P] turned in pairs of their halves, or back with a `direction` of -1 (Su et al. 2021, eq. 34).
static void turn(float* query, float* key, const float* turns, float direction, int K, int P) {
    const int half = K / 2 * P;
    for (float* x : {query, key})
        for (int i = 0; i < half; i += LANES) {
            const vec cosine = load(turns + i), sine = load(turns + half + i) * direction;
            const vec first = load(x + i), second = load(x + half + i);
            store(x + i, first * cosine - second * sine);
            store(x + half + i, second * cosine + first * sine);
        }
}

// to[o][t] = bias[o] + sum over c of weight[o][c] from[c][t], [outputs][P] from [K][P]
static void project(const float* weight, const float* bias, const float* from, float* to, int outputs, int K, int P) {
    for (int o = 0; o < outputs; o++)
        for (int t = 0; t < P; t += LANES) {
            vec y = splat(bias[o]);
            for (int c = 0; c < K; c++) y += weight[o * K + c] * load(from + c * P + t);
            store(to + o * P + t, y);
        }
}
// The gradients of that: by[c][t] += sum over o of weight[o][c] grad[o][t], and those by weight and bias.
static void project_backward(const float* weight, const float* grad, const float* from, float* by_from,
                             float* by_weight,
                             float* by_bias, int outputs, int K, int P) {
    for (int o = 0; o < outputs; o++) {
        vec total{};
        for (int t = 0; t < P; t += LANES) total += load(grad + o * P + t);
        by_bias[o] = sum(total);
        for (int c = 0; c < K; c++) {
            vec product{};
            for (int t = 0; t < P; t += LANES) {
                const vec g = load(grad + o * P + t);
                product += g * load(from + c * P + t);
                store(by_from + c * P + t, load(by_from + c * P + t) + weight[o * K + c] * g);
            }
            by_weight[o * K + c] = sum(product);
        }
    }
}

// Queries (times `factor`), keys and values [K][P] of a block, from the weight [3K][K] and bias [3K] of all three.
static void project_heads(const float* weight, const float* bias, const float* from, float* query, float* key,
                          float* value, float factor, int K, int P) {
    project(weight, bias, from, query, K, K, P);
    project(weight + K * K, bias + K, from, key, K, K, P);
    project(weight + 2 * K * K, bias + 2 * K, from, value, K, K, P);
    for (int i = 0; i < K * P; i++) query[i] *= factor;
}

// ---------------------------------------------------------------------------------------------------------------------
// Products of matrices that fit into the inner caches.

#ifdef __AVX512F__
constexpr int PANEL = 4;  // vectors of columns held in registers, beside ROWS rows
#else
constexpr int PANEL = 2;
#endif
constexpr int ROWS = 6;

template <int R, int C>
static inline INLINE void multiply_part(int k, const float* a, size_t a_row, size_t a_column, const float* b,
                                        size_t b_row,
                                        float* c, size_t c_row, const float* bias, bool add) {
    vec total[R][C];
    for (int r = 0; r < R; r++)
        for (int x = 0; x < C; x++)
            total[r][x] = add ? load(c + r * c_row + x * LANES) : bias ? load(bias + x * LANES) : vec{};
    for (int i = 0; i < k; i++) {
        vec line[C];
        for (int x = 0; x < C; x++) line[x] = load(b + i * b_row + x * LANES);
        for (int r = 0; r < R; r++)
            for (int x = 0; x < C; x++) total[r][x] += a[r * a_row + i * a_column] * line[x];
    }
    for (int r = 0; r < R; r++)
        for (int x = 0; x < C; x++) store(c + r * c_row + x * LANES, total[r][x]);
}

// c[n][m] = a[n][k] b[k][m] (+ bias[m], or + c where `add`). Element (r, i) of a stands at a[r * a_row + i * a_column];
// m is a multiple of LANES.
static void multiply(int n, int m, int k, const float* a, size_t a_row, size_t a_column, const float* b, size_t b_row,
                     float* c, size_t c_row, const float* bias, bool add) {
    auto panel = [&](int x, auto width) INLINE {
        constexpr int C = decltype(width)::value;
        const float* offset = bias ? bias + x : nullptr;
        int r = 0;
        for (; r + ROWS <= n; r += ROWS)
            multiply_part<ROWS, C>(k, a + r * a_row, a_row, a_column, b + x, b_row, c + r * c_row + x, c_row, offset,
                                   add);
        for (; r < n; r++)
            multiply_part<1, C>(k, a + r * a_row, a_row, a_column, b + x, b_row, c + r * c_row + x, c_row, offset, add);
    };
    int x = 0;
    for (; x + PANEL * LANES <= m; x += PANEL * LANES) panel(x, std::integral_constant<int, PANEL>());
    for (; x < m; x += LANES) panel(x, std::integral_constant<int, 1>());
}

// ---------------------------------------------------------------------------------------------------------------------
// Feed-forward network: linear, GELU, dropout, linear.

constexpr int TOKENS = 8 * ROWS;  // that a thread takes at once

// x Phi(x) and its derivative. The error function is that of Abramowitz and Stegun 7.1.26, to 1.5e-7.
static inline void gelu(vec x, vec& value, vec& slope) {
    const vec distance = x < 0.f ? -x : x;
    const vec density = exp2(x * x * (-0.5f / LN2));  // times sqrt(2 pi)
    const vec t = 1.f / (1.f + 0.23164189f * distance);
    vec tail = splat(0.530702714f);  // half of the published coefficients
    tail = tail * t - 0.726576013f;
    tail = tail * t + 0.710706871f;
    tail = tail * t - 0.142248368f;
    tail = tail * t + 0.127414796f;
    tail = tail * t * density;
    const vec below = x < 0.f ? tail : 1.f - tail;
    value = x * below;
    slope = below + x * density * 0.3989422804f;
}
static void apply_gelu(float* x, int size) {
    for (int i = 0; i < size; i += LANES) {
        vec value, slope;
        gelu(load(x + i), value, slope);
        store(x + i, value);
    }
}

// Which values of a row are kept, as factors 0 or 1 / (1 - p): a hash of seed, row and column, the same forward and
// backward and for any number of threads.
struct Dropout {
    uint64_t seed;
    uint32_t threshold;  // p * 2^32
    float factor;

    uint32_t row_key(uint64_t row) const {  // SplitMix64 (Steele, Lea and Flood 2014)
        uint64_t z = seed + (row + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return (uint32_t)(z >> 32) ^ (uint32_t)z;
    }
    vec keep(uint32_t key, int column) const {
        uvec x = ((uvec)lanes_from(column) * 0x9e3779b9u) ^ key;
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        return x >= threshold ? splat(factor) : vec{};
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// One token of a cached text.

// N vectors, N a power of 2, hold LANES groups of N neighbours: the sum of each group, in their order.
template <int N>
static inline INLINE vec sums_of_neighbours(vec* parts) {
    if constexpr (N > 1) {
        ivec even;
        for (int lane = 0; lane < LANES; lane++) even[lane] = 2 * lane;
        for (int i = 0; i < N / 2; i++) {
            const vec left = parts[2 * i], right = parts[2 * i + 1];
            parts[i] = shuffle(left, right, even) + shuffle(left, right, even + 1);
        }
        return sums_of_neighbours<N / 2>(parts);
    }
    return parts[0];
}

// y = W x + b, W [outputs][inputs]
static void affine(const float* weight, const float* bias, const float* x, float* y, int outputs, int inputs) {
    int o = 0;
    for (; inputs % LANES == 0 && o + LANES <= outputs; o += LANES) {
        vec parts[LANES];
        for (int r = 0; r < LANES; r++) {
            const float* row = weight + (size_t)(o + r) * inputs;
            parts[r] = load(row) * load(x);
            for (int i = LANES; i < inputs; i += LANES) parts[r] += load(row + i) * load(x + i);
        }
        store(y + o, load(bias + o) + sums_of_neighbours<LANES>(parts));
    }
    for (; o < outputs; o++) {
        y[o] = bias[o];
        for (int i = 0; i < inputs; i++) y[o] += weight[(size_t)o * inputs + i] * x[i];
    }
}

static void layer_norm(const float* x, float* to, const float* weight, const float* bias, float epsilon, int D) {
    vec total{}, square{};
    for (int d = 0; d < D; d += LANES) total += load(x + d);
    const float mean = sum(total) / D;
    for (int d = 0; d < D; d += LANES) square += (load(x + d) - mean) * (load(x + d) - mean);
    const float factor = 1 / std::sqrt(sum(square) / D + epsilon);
    for (int d = 0; d < D; d += LANES)
        store(to + d, (load(x + d) - mean) * factor * load(weight + d) + load(bias + d));
}

// Cosines and then sines [2][K / 2] of the rotary angles at a position: those of `attention.rotary_turns`.
static void turns_at(int64_t position, float* turns, int K) {
    const int half = K / 2;
    for (int i = 0; i < half; i++) {
        const float angle = position * std::pow(10000.f, -(float)i / half);
        turns[i] = std::cos(angle);
        turns[half + i] = std::sin(angle);
    }
}
static void turn_one(float* x, const float* turns, int K) {
    const int half = K / 2;
    for (int i = 0; i < half; i++) {
        const float first = x[i], second = x[half + i];
        x[i] = first * turns[i] - second * turns[half + i];
        x[half + i] = second * turns[i] + first * turns[half + i];
    }
}

// Attention of one query over cached keys and values [length][K]; `scores` has capacity for them and LANES more. Returns
// the entropy. LANES keys are K vectors; for sizes without loops of their own, K = 0 here and keys go one by one.
template <int K>
static float attend_one(const float* query, const float* key, const float* value, float* output, float* scores,
                        int length, int size) {
    constexpr int PARTS = K < LANES ? K : LANES, EACH = K ? K / PARTS : 0;  // sums to be made, vectors in each
    const float scale = 1 / (std::sqrt((float)size) * LN2);
    const int whole = K ? length / LANES * LANES : 0, rest = length - whole;
    float last_keys[LANES * (K + 1)] = {}, last_values[LANES * (K + 1)] = {};
    if constexpr (K > 0) {
        memcpy(last_keys, key + (size_t)whole * K, sizeof(float) * rest * K);
        memcpy(last_values, value + (size_t)whole * K, sizeof(float) * rest * K);
        vec q[EACH];
        for (int x = 0; x < EACH; x++)
            for (int lane = 0; lane < LANES; lane++) q[x][lane] = query[(x * LANES + lane) % K] * scale;
        for (int j = 0; j < length; j += LANES) {
            const float* from = j < whole ? key + (size_t)j * K : last_keys;
            vec parts[PARTS] = {};
            for (int v = 0; v < K; v++) parts[v / EACH] += load(from + v * LANES) * q[v % EACH];
            store(scores + j, sums_of_neighbours<PARTS>(parts));
        }
    } else {
        for (int j = 0; j < length; j++) {
            scores[j] = 0;
            for (int c = 0; c < size; c++) scores[j] += query[c] * scale * key[(size_t)j * size + c];
        }
    }
    for (int j = length; j < length + LANES; j++) scores[j] = -INFINITY;
    vec tops = load(scores), totals{}, score_sums{}, mixed[K + 1] = {};
    for (int j = LANES; j < length; j += LANES) tops = load(scores + j) <= tops ? tops : load(scores + j);
    float top = tops[0];
    for (int lane = 1; lane < LANES; lane++) top = tops[lane] <= top ? top : tops[lane];
    for (int j = 0; j < length; j += LANES) {
        const vec s = load(scores + j) - top;
        const vec p = exp2(s);
        totals += p;
        score_sums += s < -126.f ? vec{} : p * s;
        if constexpr (K > 0) {
            const float* from = j < whole ? value + (size_t)j * K : last_values;
            for (int v = 0; v < K; v++) {
                ivec owner;
                for (int lane = 0; lane < LANES; lane++) owner[lane] = (v * LANES + lane) / K;
                mixed[v] += shuffle(p, p, owner) * load(from + v * LANES);
            }
        } else {
            store(scores + j, p);
        }
    }
    for (int c = 0; c < size; c++) output[c] = 0;
    if constexpr (K > 0) {
        for (int v = EACH; v < K; v++) mixed[v % EACH] += mixed[v];
        for (int x = 0; x < EACH * LANES; x++) output[x % K] += mixed[x / LANES][x % LANES];
    } else {
        for (int j = 0; j < length; j++)
            for (int c = 0; c < size; c++) output[c] += scores[j] * value[(size_t)j * size + c];
    }
    const float total = sum(totals);
    for (int c = 0; c < size; c++) output[c] /= total;
    return (std::log2(total) - sum(score_sums) / total) * LN2;
}

static float attend_one(const float* query, const float* key, const float* value, float* output, float* scores,
                        int length, int K) {
    auto* run = K == 4 ? attend_one<4> : K == 8 ? attend_one<8> : K == 16 ? attend_one<16> : attend_one<0>;
    return run(query, key, value, output, scores, length, K);
}

// As in `lookups.py`: the row of a pair of tokens, and the token after the latest earlier occurrence of the last `count`
// tokens of a text, or -1.
static int64_t pair_row(int64_t previous, int64_t id, int64_t rows) {
    int64_t mixed = (previous + 1) * 0x9E3779B1 + (id + 1) * 0x85EBCA77;
    mixed ^= mixed >> 15;
    return (mixed ^ mixed >> 29) % rows;
}
static int64_t follower(const int64_t* text, int64_t length, int64_t count) {
    for (int64_t end = length - 1; end >= count; end--)
        if (!memcmp(text + end - count, text + length - count, sizeof *text * count)) return text[end];
    return -1;
}

// As in `sources.py`: what the blocks P, C1, C2 and G of a text's last token receive. `tables` has one for each of the
// four, of rows of S values, by position or by token; `blocks` says which blocks of the state they are, and `decays` how
// fast the last two forget.
static void receive(float* state, const float* const* tables, const int64_t* blocks, const float* decays,
                    const int64_t* text, int64_t last, int64_t position, int64_t V, int S) {
    auto add = [&](int which, int64_t row, float weight) {
        for (int s = 0; s < S; s++) state[blocks[which] * S + s] += weight * tables[which][row * S + s];
    };
    add(0, position, 1);
    if (last && text[last - 1] < V) add(1, text[last - 1], 1);
    for (int which = 2; which < 4; which++) {
        float total = 0, weight = 1, decay = decays[which - 2];
        for (int64_t age = 0; age <= last; age++, weight *= decay) total += weight;
        for (int s = 0; s < S; s++) state[blocks[which] * S + s] = 0;
        weight = 1 / std::sqrt(total);
        for (int64_t at = last; at >= 0; at--, weight *= decay)
            if (text[at] < V) add(which, text[at], weight);
    }
}

// The weights of the model and of a layer. The order is said here alone: Python reads the comments, which name the
// weights as attributes of `MuModel` and `MuLayer`, and passes their addresses one after the other. Null are positions
// where they are rotary, and the blocks' norm where norms come after the parts.
struct ModelWeights {
    const float* tokens;      // token_embedding.weight
    const float* positions;   // position_embedding.weight
    const float* affinities;  // affinity.weight
    const float* norm;        // norm.weight
    const float* norm_bias;   // norm.bias
};
struct LayerWeights {
    const float* block_norm;       // block_norm.weight
    const float* block_norm_bias;  // block_norm.bias
    const float* block_qkv;       // block_attention.qkv.weight
    const float* block_qkv_bias;  // block_attention.qkv.bias
    const float* block_out;       // block_attention.out.weight
    const float* block_out_bias;  // block_attention.out.bias
    const float* qkv;             // cross_attention.qkv.weight
    const float* qkv_bias;        // cross_attention.qkv.bias
    const float* out;             // cross_attention.out.weight
    const float* out_bias;        // cross_attention.out.bias
    const float* norm;            // attention_norm.weight
    const float* norm_bias;       // attention_norm.bias
    const float* up;              // feed_forward.up.weight
    const float* up_bias;         // feed_forward.up.bias
    const float* down;            // feed_forward.down.weight
    const float* down_bias;       // feed_forward.down.bias
    const float* last_norm;       // feed_forward_norm.weight
    const float* last_norm_bias;  // feed_forward_norm.bias
    const float* interaction;     // sensitivity.interaction
    const float* gate_up;         // sensitivity.up.weight
    const float* gate_up_bias;    // sensitivity.up.bias
    const float* gate_down;       // sensitivity.down.weight
    const float* gate_down_bias;  // sensitivity.down.bias
    const float* base;            // sensitivity.base
};

extern "C" {

// qkv [B, T, 3, H, K] to output [B, T, H, K], log_sum and entropy [B, H, T]. Here and in the three functions after it,
// `turns` are rotary positions [2, texts, T, K / 2], where `texts` is B, or 1 if they are the same for all; or null.
void mu_attention(const float* qkv, const float* turns, float* output, float* log_sum, float* entropy,
                  int64_t B, int64_t T, int64_t H, int64_t K, int64_t texts, int64_t threads) {
    const int P = row_length(T), Z = padded_size(K);
    const float scale = 1 / std::sqrt((float)K);
#pragma omp parallel num_threads(threads)
    {
        const NoSubnormals zeros;
        Scratch scratch((size_t)(5 * Z + 2) * P);
        float *q = scratch.take(Z * P), *k = scratch.take(Z * P), *v = scratch.take(Z * P), *o = scratch.take(Z * P);
        float *lse = scratch.take(P), *spread = scratch.take(P), *angles = scratch.take(Z * P);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < B * H; task++) {
            const int b = task / H, h = task % H;
            const float* from = qkv + (size_t)b * T * 3 * H * K + h * K;
            gather_heads(from, H, K, T, scale / LN2, q, k, v, Z, P);
            if (turns) gather_turns(turns, b % texts, texts, K, T, angles, P);
            if (turns) turn(q, k, angles, 1, K, P);
            attend(Z, q, k, v, o, lse, spread, T, P);
            scatter(o, P, K, T, output + (size_t)b * T * H * K + h * K, H * K);
            memcpy(log_sum + (size_t)task * T, lse, sizeof(float) * T);
            memcpy(entropy + (size_t)task * T, spread, sizeof(float) * T);
        }
    }
}

void mu_attention_backward(const float* grad_output, const float* grad_entropy, const float* qkv, const float* turns,
                           const float* output, const float* log_sum, const float* entropy, float* grad_qkv,
                           int64_t B, int64_t T, int64_t H, int64_t K, int64_t texts, int64_t threads) {
    const int P = row_length(T), Z = padded_size(K);
    const float scale = 1 / std::sqrt((float)K);
#pragma omp parallel num_threads(threads)
    {
        const NoSubnormals zeros;
        Scratch scratch((size_t)(8 * Z + 3) * P);
        float *q = scratch.take(Z * P), *k = scratch.take(Z * P), *v = scratch.take(Z * P), *g = scratch.take(Z * P);
        float *dq = scratch.take(Z * P), *dk = scratch.take(Z * P), *dv = scratch.take(Z * P);
        float *lse = scratch.take(P), *offset = scratch.take(P), *slope = scratch.take(P);
        float* angles = scratch.take(Z * P);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < B * H; task++) {
            const int b = task / H, h = task % H;
            const size_t first = (size_t)b * T * 3 * H * K + h * K, out = (size_t)b * T * H * K + h * K;
            gather_heads(qkv + first, H, K, T, scale / LN2, q, k, v, Z, P);
            if (turns) gather_turns(turns, b % texts, texts, K, T, angles, P);
            if (turns) turn(q, k, angles, 1, K, P);
            gather(grad_output + out, H * K, K, T, 1, g, Z, P);
            for (int t = T; t < P; t++) lse[t] = INFINITY;  // the weights of rows that are not there
            memset(offset, 0, sizeof(float) * P);
            memset(slope, 0, sizeof(float) * P);
            for (int t = 0; t < T; t++) {
                // The entropy h = -sum p log p has the gradient -p (log p + h) by a score.
                const float by_entropy = grad_entropy[(size_t)task * T + t];
                lse[t] = log_sum[(size_t)task * T + t];
                slope[t] = by_entropy * LN2;
                offset[t] = by_entropy * (entropy[(size_t)task * T + t] - lse[t] * LN2);
                for (int c = 0; c < K; c++) offset[t] += g[c * P + t] * output[out + (size_t)t * H * K + c];
            }
            attend_backward(Z, q, k, v, g, lse, offset, slope, dq, dk, dv, scale, T, P);
            if (turns) turn(dq, dk, angles, -1, K, P);
            scatter(dq, P, K, T, grad_qkv + first, 3 * H * K);
            scatter(dk, P, K, T, grad_qkv + first + H * K, 3 * H * K);
            scatter(dv, P, K, T, grad_qkv + first + 2 * H * K, 3 * H * K);
        }
    }
}

// state [B, T, H, K] to output [B, T, H, K]: each block's own projections around its own attention. Kept for the
// backward pass: mixed [B, H, K, T] before the last projection, and log_sum [B, H, T].
void mu_block_attention(const float* state, const float* qkv_weight, const float* qkv_bias, const float* out_weight,
                        const float* out_bias, const float* turns, float* output, float* mixed, float* log_sum,
                        int64_t B, int64_t T, int64_t H, int64_t K, int64_t texts, int64_t threads) {
    const int P = row_length(T), Z = padded_size(K);
    const float factor = 1 / (std::sqrt((float)K) * LN2);
#pragma omp parallel num_threads(threads)
    {
        const NoSubnormals zeros;
        Scratch scratch((size_t)(7 * Z + 1) * P);
        float *x = scratch.take(Z * P), *q = scratch.take(Z * P), *k = scratch.take(Z * P), *v = scratch.take(Z * P);
        float *o = scratch.take(Z * P), *y = scratch.take(Z * P), *lse = scratch.take(P);
        float* angles = scratch.take(Z * P);
        memset(q, 0, sizeof(float) * 3 * Z * P);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < B * H; task++) {
            const int b = task / H, h = task % H;
            const size_t first = (size_t)b * T * H * K + h * K;
            const float *weight = qkv_weight + (size_t)h * 3 * K * K, *bias = qkv_bias + h * 3 * K;
            gather(state + first, H * K, K, T, 1, x, Z, P);
            project_heads(weight, bias, x, q, k, v, factor, K, P);
            if (turns) gather_turns(turns, b % texts, texts, K, T, angles, P);
            if (turns) turn(q, k, angles, 1, K, P);
            attend(Z, q, k, v, o, lse, nullptr, T, P);
            project(out_weight + (size_t)h * K * K, out_bias + h * K, o, y, K, K, P);
            scatter(y, P, K, T, output + first, H * K);
            for (int c = 0; c < K; c++)
                memcpy(mixed + ((size_t)task * K + c) * T, o + c * P, sizeof(float) * T);
            memcpy(log_sum + (size_t)task * T, lse, sizeof(float) * T);
        }
    }
}

// Gradients by weights and biases come for each sequence alone, [B, H, ...]: their sum does not depend on threads.
void mu_block_attention_backward(const float* grad_output, const float* state, const float* qkv_weight,
                                 const float* qkv_bias, const float* out_weight, const float* turns,
                                 const float* mixed, const float* log_sum, float* grad_state, float* grad_qkv_weight,
                                 float* grad_qkv_bias, float* grad_out_weight, float* grad_out_bias,
                                 int64_t B, int64_t T, int64_t H, int64_t K, int64_t texts, int64_t threads) {
    const int P = row_length(T), Z = padded_size(K);
    const float scale = 1 / std::sqrt((float)K), factor = scale / LN2;
#pragma omp parallel num_threads(threads)
    {
        const NoSubnormals zeros;
        Scratch scratch((size_t)(12 * Z + 3) * P);
        float *x = scratch.take(Z * P), *q = scratch.take(Z * P), *k = scratch.take(Z * P), *v = scratch.take(Z * P);
        float *o = scratch.take(Z * P), *y = scratch.take(Z * P), *g = scratch.take(Z * P), *dx = scratch.take(Z * P);
        float *dq = scratch.take(Z * P), *dk = scratch.take(Z * P), *dv = scratch.take(Z * P);
        float *lse = scratch.take(P), *offset = scratch.take(P), *slope = scratch.take(P);
        float* angles = scratch.take(Z * P);
        memset(q, 0, sizeof(float) * 3 * Z * P);
        memset(slope, 0, sizeof(float) * P);
        memset(o, 0, sizeof(float) * Z * P);
#pragma omp for schedule(dynamic)
        for (int task = 0; task < B * H; task++) {
            const int b = task / H, h = task % H;
            const size_t first = (size_t)b * T * H * K + h * K;
            const float *weight = qkv_weight + (size_t)h * 3 * K * K, *bias = qkv_bias + h * 3 * K;
            float *by_weight = grad_qkv_weight + (size_t)task * 3 * K * K, *by_bias = grad_qkv_bias + task * 3 * K;
            gather(state + first, H * K, K, T, 1, x, Z, P);
            project_heads(weight, bias, x, q, k, v, factor, K, P);
            if (turns) gather_turns(turns, b % texts, texts, K, T, angles, P);
            if (turns) turn(q, k, angles, 1, K, P);
            gather(grad_output + first, H * K, K, T, 1, y, Z, P);
            for (int c = 0; c < K; c++)
                memcpy(o + c * P, mixed + ((size_t)task * K + c) * T, sizeof(float) * T);
            memset(g, 0, sizeof(float) * Z * P);
            project_backward(out_weight + (size_t)h * K * K, y, o, g, grad_out_weight + (size_t)task * K * K,
                             grad_out_bias + (size_t)task * K, K, K, P);
            for (int t = T; t < P; t++) lse[t] = INFINITY;
            memcpy(lse, log_sum + (size_t)task * T, sizeof(float) * T);
            memset(offset, 0, sizeof(float) * P);
            for (int c = 0; c < K; c++)
                for (int t = 0; t < T; t++) offset[t] += g[c * P + t] * o[c * P + t];
            attend_backward(Z, q, k, v, g, lse, offset, slope, dq, dk, dv, scale, T, P);
            if (turns) turn(dq, dk, angles, -1, K, P);
            memset(dx, 0, sizeof(float) * Z * P);
            project_backward(weight, dq, x, dx, by_weight, by_bias, K, K, P);
            project_backward(weight + K * K, dk, x, dx, by_weight + K * K, by_bias + K, K, K, P);
            project_backward(weight + 2 * K * K, dv, x, dx, by_weight + 2 * K * K, by_bias + 2 * K, K, K, P);
            scatter(dx, P, K, T, grad_state + first, H * K);
        }
    }
}

// x [n, D] to output [n, D]. The transposed weights are up [D, F] and down [F, D].
void mu_feed_forward(const float* x, const float* up_transposed, const float* up_bias, const float* down_transposed,
                     const float* down_bias, float* output, int64_t seed, int64_t n, int64_t D, int64_t F, float p,
                     int64_t threads) {
    const Dropout dropout{(uint64_t)seed, (uint32_t)(p * 4294967296.0), 1 / (1 - p)};
#pragma omp parallel num_threads(threads)
    {
        const NoSubnormals zeros;
        Scratch scratch((size_t)TOKENS * F);
        float* hidden = scratch.take((size_t)TOKENS * F);
#pragma omp for schedule(static)
        for (int first = 0; first < n; first += TOKENS) {
            const int count = first + TOKENS < n ? TOKENS : n - first;
            multiply(count, F, D, x + (size_t)first * D, D, 1, up_transposed, F, hidden, F, up_bias, false);
            for (int t = 0; t < count; t++) {
                const uint32_t key = dropout.row_key(first + t);
                for (int f = 0; f < F; f += LANES) {
                    vec value, slope;
                    gelu(load(hidden + t * F + f), value, slope);
                    store(hidden + t * F + f, p > 0 ? value * dropout.keep(key, f) : value);
                }
            }
            multiply(count, D, F, hidden, F, 1, down_transposed, D, output + (size_t)first * D, D, down_bias, false);
        }
    }
}

// Gradients by weights and biases come for each thread alone, [threads, ...], and must be 0 before.
void mu_feed_forward_backward(const float* grad_output, const float* x, const float* up, const float* up_transposed,
                              const float* up_bias, const float* down, float* grad_x, float* grad_up,
                              float* grad_up_bias, float* grad_down, float* grad_down_bias, int64_t seed, int64_t n,
                              int64_t D, int64_t F, float p, int64_t threads) {
    const Dropout dropout{(uint64_t)seed, (uint32_t)(p * 4294967296.0), 1 / (1 - p)};
#pragma omp parallel num_threads(threads)
    {
        const NoSubnormals zeros;
#ifdef _OPENMP
        const size_t thread = omp_get_thread_num();
#else
        const size_t thread = 0;
#endif
        float *by_up = grad_up + thread * F * D, *by_up_bias = grad_up_bias + thread * F;
        float *by_down = grad_down + thread * D * F, *by_down_bias = grad_down_bias + thread * D;
        Scratch scratch((size_t)2 * TOKENS * F);
        float *hidden = scratch.take((size_t)TOKENS * F), *by_hidden = scratch.take((size_t)TOKENS * F);
#pragma omp for schedule(static)
        for (int first = 0; first < n; first += TOKENS) {
            const int count = first + TOKENS < n ? TOKENS : n - first;
            const float *here = x + (size_t)first * D, *grad = grad_output + (size_t)first * D;
            multiply(count, F, D, here, D, 1, up_transposed, F, hidden, F, up_bias, false);
            multiply(count, F, D, grad, D, 1, down, F, by_hidden, F, nullptr, false);
            for (int t = 0; t < count; t++) {
                const uint32_t key = dropout.row_key(first + t);
                for (int f = 0; f < F; f += LANES) {
                    vec value, slope;
                    gelu(load(hidden + t * F + f), value, slope);
                    const vec keep = p > 0 ? dropout.keep(key, f) : splat(1.f);
                    const vec by = load(by_hidden + t * F + f) * keep * slope;
                    store(hidden + t * F + f, value * keep);
                    store(by_hidden + t * F + f, by);
                    store(by_up_bias + f, load(by_up_bias + f) + by);
                }
                for (int d = 0; d < D; d += LANES)
                    store(by_down_bias + d, load(by_down_bias + d) + load(grad + t * D + d));
            }
            multiply(count, D, F, by_hidden, F, 1, up, D, grad_x + (size_t)first * D, D, nullptr, false);
            multiply(F, D, count, by_hidden, 1, F, here, D, by_up, D, nullptr, true);
            multiply(D, F, count, grad, 1, D, hidden, F, by_down, F, nullptr, true);
        }
    }
}

// Cross-entropy of softmax(hidden weight^T + bias), hidden [n, D], weight [V, D], a tile of the vocabulary at a time.
// Losses [n] (0 where the label is negative) and whether the first of the largest logits is the label's, right [n].
//
// With gradients asked for, those of the summed loss: by_hidden [n, D], by_weight [V, D], by_bias [V]. A first pass,
// rows shared out over threads, finds each row's sum of exponentials, and its gradient by the way: terms are scaled
// again when a larger logit turns up (Milakov and Gimelshein 2018). A second, the vocabulary shared out, makes the
// logits anew.
void mu_cross_entropy(const float* hidden, const float* weight, const float* bias, const int64_t* labels,
                      float* losses,
                      float* right, float* by_hidden, float* by_weight, float* by_bias, int64_t n, int64_t D, int64_t V,
                      int64_t threads) {
    constexpr int TILE = 128, BLOCK = 32 * ROWS;
    float* log_sums = (float*)std::malloc(sizeof(float) * n);
#pragma omp parallel num_threads(threads)
    {
        const NoSubnormals zeros;
        Scratch scratch((size_t)TILE * D + TILE + BLOCK * TILE + BLOCK * D + 3 * BLOCK);
        float *packed = scratch.take((size_t)TILE * D), *offset = scratch.take(TILE);
        float *terms = scratch.take(BLOCK * TILE), *mixed = scratch.take((size_t)BLOCK * D);
        float *top = scratch.take(BLOCK), *total = scratch.take(BLOCK), *own = scratch.take(BLOCK);
        int first_of_top[BLOCK];
        // A tile of the weights as columns. Beyond the vocabulary the bias rules all out.
        auto pack = [&](int tile) {
            const int width = tile + TILE < V ? TILE : V - tile;
            const float* from = weight + (size_t)tile * D;
            for (int v = 0; v < TILE; v++) offset[v] = v >= width ? -INFINITY : bias ? bias[tile + v] : 0.f;
            for (int v = 0; v < TILE; v += LANES)
                for (int d = 0; d < D; d++)
                    for (int x = v; x < v + LANES; x++) packed[d * TILE + x] = x < width ? from[x * D + d] : 0.f;
            return width;
        };
#pragma omp for schedule(dynamic)
        for (int start = 0; start < n; start += BLOCK) {
            const int count = start + BLOCK < n ? BLOCK : n - start;
            memset(mixed, 0, sizeof(float) * BLOCK * D);
            for (int r = 0; r < count; r++) top[r] = -INFINITY, total[r] = 0, own[r] = 0, first_of_top[r] = 0;
            for (int tile = 0; tile < V; tile += TILE) {
                const int width = pack(tile);
                multiply(count, TILE, D, hidden + (size_t)start * D, D, 1, packed, TILE, terms, TILE, offset, false);
                for (int r = 0; r < count; r++) {
                    float* line = terms + r * TILE;
                    const int64_t label = labels[start + r] - tile;
                    if (label >= 0 && label < width) own[r] = line[label];
                    vec most = load(line);
                    for (int v = LANES; v < TILE; v += LANES) {
                        const vec x = load(line + v);
                        most = x > most ? x : most;
                    }
                    float largest = most[0];
                    for (int lane = 1; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
                    if (largest > top[r]) {
                        const float shrink = std::exp(top[r] - largest);
                        total[r] *= shrink;
                        for (int d = 0; d < D; d++) mixed[r * D + d] *= shrink;
                        top[r] = largest;
                        int v = 0;
                        while (line[v] != largest) v++;
                        first_of_top[r] = tile + v;
                    }
                    const float shift = top[r] == -INFINITY ? 0 : top[r];  // a bias can rule out a whole tile
                    vec tile_total{};
                    for (int v = 0; v < TILE; v += LANES) {
                        const vec term = exp2((load(line + v) - shift) * (1 / LN2));
                        tile_total += term;
                        store(line + v, term);
                    }
                    total[r] += sum(tile_total);
                }
                if (by_hidden)
                    multiply(count, D, width, terms, TILE, 1, weight + (size_t)tile * D, D, mixed, D, nullptr, true);
            }
            for (int r = 0; r < count; r++) {
                const int64_t label = labels[start + r];
                const float log_sum = top[r] + std::log(total[r]);
                log_sums[start + r] = log_sum;
                losses[start + r] = label < 0 ? 0 : log_sum - own[r];
                right[start + r] = label >= 0 && first_of_top[r] == label;
                for (int d = 0; by_hidden && d < D; d++)
                    by_hidden[(size_t)(start + r) * D + d] =
                        label < 0 ? 0 : mixed[r * D + d] / total[r] - weight[(size_t)label * D + d];
            }
        }
        if (by_weight) {
#pragma omp for schedule(dynamic)
            for (int tile = 0; tile < V; tile += TILE) {
                const int width = pack(tile);
                float* gradient = by_weight + (size_t)tile * D;
                float by_offset[TILE] = {};
                memset(gradient, 0, sizeof(float) * width * D);
                for (int start = 0; start < n; start += BLOCK) {
                    const int count = start + BLOCK < n ? BLOCK : n - start;
                    const float* rows = hidden + (size_t)start * D;
                    multiply(count, TILE, D, rows, D, 1, packed, TILE, terms, TILE, offset, false);
                    for (int r = 0; r < count; r++) {
                        const int64_t label = labels[start + r];
                        float* line = terms + r * TILE;
                        for (int v = 0; v < TILE; v += LANES) {
                            const vec share = exp2((load(line + v) - log_sums[start + r]) * (1 / LN2));
                            store(line + v, label < 0 ? vec{} : share);
                        }
                        if (label >= tile && label < tile + width) line[label - tile] -= 1;
                        for (int v = 0; v < TILE; v += LANES)
                            store(by_offset + v, load(by_offset + v) + load(line + v));
                    }
                    multiply(width, D, count, terms, 1, TILE, rows, D, gradient, D, nullptr, true);
                }
                if (by_bias) memcpy(by_bias + tile, by_offset, sizeof(float) * width);
            }
        }
    }
    std::free(log_sums);
}

// y [outputs] = W x + b for one x [inputs]: bound by the reading of W [outputs, inputs].
void mu_linear(const float* x, const float* weight, const float* bias, float* y, int64_t outputs, int64_t inputs,
               int64_t threads) {
    constexpr int SHARE = 1024;
#pragma omp parallel for num_threads(threads) if (outputs > SHARE)
    for (int64_t first = 0; first < outputs; first += SHARE) {
        const NoSubnormals zeros;
        const int count = first + SHARE < outputs ? SHARE : outputs - first;
        affine(weight + first * inputs, bias + first, x, y + first, count, inputs);
    }
}

// The whole model for one new token of each of B texts: ids and positions [B] to final states [B, D]. `weights` are those
// of ModelWeights, then those of LayerWeights for each layer. A layer has two caches, each of keys and then values: those
// of the blocks, [2][B][N][capacity][S], and those of whole states, [2][B][H][capacity][D / H]; `capacities` are those of
// all caches. Keys and values of the new token are written to position length - 1. Where there are lookup tables, `tables`
// has that of pairs, of `pair_rows` rows or none, then those of induction, of V rows each, and then those of the sources
// if `sources` says which four blocks they feed; `texts` is the cache of ids [2][B][text_capacity], twice the same, to
// which the new ones are written, too.
void mu_decode_step(const int64_t* ids, const int64_t* positions, float* states, const float* const* weights,
                    float* const* caches, const int64_t* capacities, const float* const* tables, int64_t* texts,
                    int64_t text_capacity, int64_t pair_rows, int64_t inductions, int64_t V, const int64_t* sources,
                    const float* decays, int64_t length, int64_t layers, int64_t B, int64_t D, int64_t N, int64_t H, int64_t F, int64_t G, float epsilon,
                    int64_t threads) {
    const int S = D / N, K = D / H, last = length - 1;
    const auto& model = *reinterpret_cast<const ModelWeights*>(weights);
    const auto* of_layer = reinterpret_cast<const LayerWeights*>(weights + sizeof model / sizeof *weights);
#pragma omp parallel for num_threads(threads) if (B > 1)
    for (int task = 0; task < B; task++) {
        const NoSubnormals zeros;
        Scratch scratch((size_t)length + LANES + 7 * D + F + G + 3 * N + S + K + 64);
        float *scores = scratch.take(length + LANES), *blocks = scratch.take(D), *mixed = scratch.take(D);
        float *heads = scratch.take(3 * D), *x = scratch.take(D), *normed = scratch.take(D), *hidden = scratch.take(F);
        float *features = scratch.take(N + 1), *gate_hidden = scratch.take(G), *gate = scratch.take(N);
        float *block_turns = scratch.take(S), *cross_turns = scratch.take(K);
        float* state = states + task * D;
        for (int d = 0; d < D; d++) {
            state[d] = model.tokens[ids[task] * D + d];
            if (model.positions) state[d] += model.positions[positions[task] * D + d];
        }
        int64_t* text = texts + task * text_capacity;
        if (texts) text[last] = text[B * text_capacity + last] = ids[task];
        if (pair_rows) {
            const float* row = tables[0] + pair_row(last ? text[last - 1] : -1, ids[task], pair_rows) * D;
            for (int d = 0; d < D; d++) state[d] += row[d];
        }
        for (int n = 0; n < inductions; n++) {
            const int64_t next = follower(text, length, n + 1);
            if (next < 0 || next >= V) continue;
            const float* row = tables[n + (pair_rows > 0)] + next * D;
            for (int d = 0; d < D; d++) state[d] += row[d];
        }
        if (sources)
            receive(state, tables + (pair_rows > 0) + inductions, sources, decays, text, last, positions[task], V, S);
        if (!model.positions) {
            turns_at(positions[task], block_turns, S);
            turns_at(positions[task], cross_turns, K);
        }
        for (int layer = 0; layer < layers; layer++) {
            const LayerWeights& w = of_layer[layer];
            const bool norm_before = w.block_norm != nullptr;
            const float* affinity = model.affinities + ((size_t)ids[task] * layers + layer) * N;
            const int64_t block_capacity = capacities[2 * layer], cross_capacity = capacities[2 * layer + 1];
            float *block_keys = caches[2 * layer], *block_values = block_keys + (size_t)B * D * block_capacity;
            float *cross_keys = caches[2 * layer + 1], *cross_values = cross_keys + (size_t)B * D * cross_capacity;
            if (norm_before) layer_norm(state, normed, w.block_norm, w.block_norm_bias, epsilon, D);
            const float* of_blocks = norm_before ? normed : state;
            for (int n = 0; n < N; n++) {
                float one[3 * 16], mean[16];
                const size_t start = ((size_t)task * N + n) * block_capacity * S;
                affine(w.block_qkv + n * 3 * S * S, w.block_qkv_bias + n * 3 * S, of_blocks + n * S, one, 3 * S, S);
                if (!model.positions) {
                    turn_one(one, block_turns, S);
                    turn_one(one + S, block_turns, S);
                }
                float *keys = block_keys + start, *values = block_values + start;
                memcpy(keys + (size_t)last * S, one + S, sizeof(float) * S);
                memcpy(values + (size_t)last * S, one + 2 * S, sizeof(float) * S);
                attend_one(one, keys, values, mean, scores, length, S);
                affine(w.block_out + n * S * S, w.block_out_bias + n * S, mean, blocks + n * S, S, S);
            }
            if (norm_before) {
                for (int d = 0; d < D; d++) blocks[d] += state[d];
                layer_norm(blocks, normed, w.norm, w.norm_bias, epsilon, D);
            }
            affine(w.qkv, w.qkv_bias, norm_before ? normed : blocks, heads, 3 * D, D);
            float entropy = 0;
            for (int h = 0; h < H; h++) {
                if (!model.positions) {
                    turn_one(heads + h * K, cross_turns, K);
                    turn_one(heads + D + h * K, cross_turns, K);
                }
                const size_t start = ((size_t)task * H + h) * cross_capacity * K;
                float *keys = cross_keys + start, *values = cross_values + start;
                memcpy(keys + (size_t)last * K, heads + D + h * K, sizeof(float) * K);
                memcpy(values + (size_t)last * K, heads + 2 * D + h * K, sizeof(float) * K);
                entropy += attend_one(heads + h * K, keys, values, mixed + h * K, scores, length, K);
            }
            affine(w.out, w.out_bias, mixed, x, D, D);
            for (int d = 0; d < D; d++) x[d] += blocks[d];
            if (norm_before)
                layer_norm(x, normed, w.last_norm, w.last_norm_bias, epsilon, D);
            else
                layer_norm(x, x, w.norm, w.norm_bias, epsilon, D);
            affine(w.up, w.up_bias, norm_before ? normed : x, hidden, F, D);
            apply_gelu(hidden, F);
            affine(w.down, w.down_bias, hidden, mixed, D, F);
            for (int d = 0; d < D; d++) x[d] += mixed[d];
            if (!norm_before) layer_norm(x, x, w.last_norm, w.last_norm_bias, epsilon, D);
            for (int n = 0; n < N; n++) features[n] = 0;
            for (int m = 0; m < N; m++)
                for (int n = 0; n < N; n++) features[n] += affinity[m] * w.interaction[m * N + n];
            features[N] = entropy / H;
            affine(w.gate_up, w.gate_up_bias, features, gate_hidden, G, N + 1);
            apply_gelu(gate_hidden, G);
            affine(w.gate_down, w.gate_down_bias, gate_hidden, gate, N, G);
            for (int n = 0; n < N; n++) gate[n] = w.base[n] / (1 + std::exp(-gate[n]));
            for (int d = 0; d < D; d++) state[d] += gate[d / S] * (x[d] - state[d]);
        }
        layer_norm(state, state, model.norm, model.norm_bias, epsilon, D);
    }
}

}  // extern "C"
