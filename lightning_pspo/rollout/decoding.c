/* What lies between the products of a decoding step of Llama's family, in bfloat16 on a CPU.
 *
 * native.py compiles it, with LANES and MOST_WIDE, and documents the arguments. Everything works on LANES numbers at
 * once, so widths must be multiples of that. Sums are in float32, in an order that the number of threads does not
 * change; other rows change it only through the padding of a prompt. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define FOR(i, size) for (long i = 0; i < (size); i += LANES)

INLINE floats load(const float *from) {
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, floats x) { memcpy(to, &x, sizeof x); }

INLINE floats widen(const bf16 *from) {
    halves x;
    memcpy(&x, from, sizeof x);
    return (floats)(__builtin_convertvector(x, words) << 16);
}

INLINE words nearest(floats x) { /* bfloat16, ties to even, in the upper half of each word */
    words bits = (words)x, is_nan = (words)(x != x);
    return ((bits + 0x7fff + (bits >> 16 & 1)) & ~is_nan) | (is_nan & 0x7fc00000);
}

INLINE void narrow(bf16 *to, floats x) {
    halves y = __builtin_convertvector(nearest(x) >> 16, halves);
    memcpy(to, &y, sizeof y);
}

INLINE floats rounded(floats x) { return (floats)(nearest(x) & 0xffff0000); }

INLINE floats larger(floats x, floats y) { /* y if one is NaN */
    words is = (words)(x > y);
    return (floats)(((words)x & is) | ((words)y & ~is));
}

INLINE float sum_of(floats x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

INLINE floats exponential(floats x) { /* of NaN NaN; else to 3e-7, relatively, with x brought into -87 to 88 */
    x = larger((floats){} - 87.0f, x);
    x = -larger((floats){} - 88.0f, -x);
    floats whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest integer */
    floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln 2 in two parts */
    floats series = rest * (1.0f / 720) + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 1.0f / 2;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    return (floats)((integers)series + (__builtin_convertvector(whole, integers) << 23));
}

INLINE float rms_factor(floats squares, long size, float epsilon) {
    return 1.0f / sqrtf(sum_of(squares) / size + epsilon);
}

void add_norm(void *states, int is_wide, const bf16 *change, const float *weight, float epsilon, bf16 *out, long rows,
              long size, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        float *wide = (float *)states + row * size;
        bf16 *slim = (bf16 *)states + row * size;
        floats squares = {};
        FOR(i, size) {
            floats x = is_wide ? load(wide + i) : widen(slim + i);
            if (change) {
                x += widen(change + row * size + i);
                if (is_wide) store(wide + i, x);
                else narrow(slim + i, x = rounded(x));
            }
            squares += x * x;
        }
        float factor = rms_factor(squares, size, epsilon);
        FOR(i, size) {
            floats normed = is_wide ? load(wide + i) * factor : rounded(widen(slim + i) * factor);
            narrow(out + row * size + i, normed * load(weight + i));
        }
    }
}

void silu_times(const bf16 *gate_up, bf16 *out, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const bf16 *gate = gate_up + row * 2 * size, *up = gate + size;
        FOR(i, size) {
            floats x = larger((floats){} - 100.0f, widen(gate + i)); /* where it is next to 0, and -inf would stay */
            narrow(out + row * size + i, rounded(x / (1.0f + exponential(-x))) * widen(up + i));
        }
    }
}

struct attention {
    const bf16 *queries, *keys, *values;
    const float *cosines, *sines, *query_norm, *key_norm;
    bf16 *own_keys, *own_values;
    const bf16 *prompt_keys, *prompt_values;
    const int64_t *groups, *starts;
    bf16 *out;
    long rows, heads, repeats, width, capacity, length, prompt_length;
    float scale, epsilon;
    int threads;
};

/* Norm, if there is a weight, and rotary embedding of one head, rounded to bfloat16. */
INLINE void turn(const struct attention *a, long row, const bf16 *in, const float *weight, float *out) {
    const float *cosine = a->cosines + row * a->width, *sine = a->sines + row * a->width;
    long width = a->width;
    floats squares = {};
    FOR(i, width) {
        floats x = widen(in + i);
        squares += x * x;
        store(out + i, x);
    }
    if (weight) {
        float factor = rms_factor(squares, width, a->epsilon);
        FOR(i, width) store(out + i, rounded(rounded(load(out + i) * factor) * load(weight + i)));
    }
    FOR(i, width / 2) {
        long j = i + width / 2;
        floats left = load(out + i), right = load(out + j);
        store(out + i, rounded(left * load(cosine + i) - right * load(sine + i)));
        store(out + j, rounded(right * load(cosine + j) + left * load(sine + j)));
    }
}

/* Products of ``tile`` queries with ``count`` keys, rounded up to blocks of 16, each of which is stored (width, 16). */
INLINE void scores_of(const float *queries, int tile, long width, const bf16 *keys, long count, float *scores,
                      long stride) {
    FOR(key, count) {
        floats sums[4] = {};
        for (long i = 0; i < width; i++) {
            floats x = widen(keys + key * width + i * LANES);
            for (int q = 0; q < tile; q++) sums[q] += x * queries[q * width + i];
        }
        for (int q = 0; q < tile; q++) store(scores + q * stride + key, sums[q]);
    }
}

/* Add the weighted sums of ``count`` values to ``sums``, for ``columns`` * 16 of their numbers. */
INLINE void add_values(const float *weights, long stride, int tile, const bf16 *values, long count, long width,
                       int columns, float *sums) {
    floats x[4][4];
    for (int q = 0; q < tile; q++)
        for (int c = 0; c < columns; c++) x[q][c] = load(sums + q * width + c * LANES);
    for (long key = 0; key < count; key++)
        for (int c = 0; c < columns; c++) {
            floats value = widen(values + key * width + c * LANES);
            for (int q = 0; q < tile; q++) x[q][c] += value * weights[q * stride + key];
        }
    for (int q = 0; q < tile; q++)
        for (int c = 0; c < columns; c++) store(sums + q * width + c * LANES, x[q][c]);
}

/* Replace scores by powers of e of which the greatest is 1; return their sum. */
INLINE float softmax(float *scores, long count) {
    floats greatest = load(scores), sums = {};
    FOR(i, count) greatest = larger(load(scores + i), greatest);
    float most = greatest[0];
    for (int i = 1; i < LANES; i++) most = greatest[i] > most ? greatest[i] : most;
    FOR(i, count) {
        floats power = exponential(load(scores + i) - most);
        sums += power;
        store(scores + i, power);
    }
    return sum_of(sums);
}

INLINE void fetch(const bf16 *from, long size) { /* into the cache, ahead of its use */
    for (long i = 0; i < size; i += 2 * LANES) __builtin_prefetch(from + i, 0, 2);
}

INLINE void attend_tile(const struct attention *a, const float *queries, int tile, long row, long head, float *scores,
                        float *sums, bf16 *out) {
    long width = a->width, place = row * a->heads + head, prompt = a->groups[row], first = a->starts[prompt];
    long blocked = (a->prompt_length + LANES - 1) / LANES * LANES, skipped = first / LANES * LANES;
    long prompts = blocked - skipped, own = a->length + 1, count = prompts + (own + LANES - 1) / LANES * LANES;
    const bf16 *prompt_keys = a->prompt_keys + ((prompt * a->heads + head) * blocked + skipped) * width;
    const bf16 *prompt_values = a->prompt_values + ((prompt * a->heads + head) * a->prompt_length + first) * width;
    const bf16 *own_keys = a->own_keys + place * a->capacity * width;
    const bf16 *own_values = a->own_values + place * a->capacity * width;

    fetch(own_values, own * width);
    scores_of(queries, tile, width, prompt_keys, prompts, scores, count);
    scores_of(queries, tile, width, own_keys, own, scores + prompts, count);
    if (place + 1 < a->rows * a->heads) fetch(own_keys + a->capacity * width, own * width);
    float totals[4];
    for (int q = 0; q < tile; q++) {
        float *mine = scores + q * count;
        for (long i = 0; i < first - skipped; i++) mine[i] = -INFINITY;
        for (long i = a->prompt_length - skipped; i < prompts; i++) mine[i] = -INFINITY;
        for (long i = prompts + own; i < count; i++) mine[i] = -INFINITY;
        totals[q] = softmax(mine, count);
    }
    memset(sums, 0, tile * width * sizeof *sums);
    for (long i = 0; i < width;) {
        int columns = width - i >= 4 * LANES ? 4 : 1;
        for (int part = 0; part < 2; part++) {
            const float *weights = scores + (part ? prompts : first - skipped);
            const bf16 *values = (part ? own_values : prompt_values) + i;
            long keys = part ? own : a->prompt_length - first;
            if (columns == 4) add_values(weights, count, tile, values, keys, width, 4, sums + i);
            else add_values(weights, count, tile, values, keys, width, 1, sums + i);
        }
        i += columns * LANES;
    }
    for (int q = 0; q < tile; q++) FOR(i, width) narrow(out + q * width + i, load(sums + q * width + i) / totals[q]);
}

static void attend_head(const struct attention *a, long row, long head, float *scratch) {
    long width = a->width, place = row * a->heads + head, block = a->length / LANES, lane = a->length % LANES;
    bf16 *keys = a->own_keys + (place * a->capacity + block * LANES) * width, key[MOST_WIDE];
    bf16 *out = a->out + place * a->repeats * width;
    float *sums = scratch + a->repeats * width, *scores = sums + 4 * width;

    turn(a, row, a->keys + place * width, a->key_norm, sums);
    FOR(i, width) narrow(key + i, load(sums + i));
    for (long i = 0; i < width; i++) keys[i * LANES + lane] = key[i];
    memcpy(a->own_values + (place * a->capacity + a->length) * width, a->values + place * width, width * sizeof *key);
    for (long q = 0; q < a->repeats; q++) {
        float *query = scratch + q * width;
        turn(a, row, a->queries + (place * a->repeats + q) * width, a->query_norm, query);
        FOR(i, width) store(query + i, load(query + i) * a->scale);
    }
    for (long q = 0; q < a->repeats; q += 4) { /* a constant tile keeps the sums in registers */
        const float *query = scratch + q * width;
        switch (a->repeats - q) {
        case 1: attend_tile(a, query, 1, row, head, scores, sums, out + q * width); break;
        case 2: attend_tile(a, query, 2, row, head, scores, sums, out + q * width); break;
        case 3: attend_tile(a, query, 3, row, head, scores, sums, out + q * width); break;
        default: attend_tile(a, query, 4, row, head, scores, sums, out + q * width);
        }
    }
}

void attend(const struct attention *a) {
    long size = a->repeats * a->width + 4 * (a->width + a->prompt_length + a->length + 1 + 3 * LANES);
#pragma omp parallel num_threads(a->threads)
    {
        float *scratch = malloc(size * sizeof *scratch);
        if (!scratch) abort();
#pragma omp for nowait
        for (long place = 0; place < a->rows * a->heads; place++)
            attend_head(a, place / a->heads, place % a->heads, scratch);
        free(scratch);
    }
}
