// Rotates queries and keys by their positions, and stores keys and values in the cache.
//
// A row's heads are those of the query, then the keys', then the values'; each part may be missing. A block
// takes HEADS_A_BLOCK heads of one row. Angles are computed in f64 and their sines and cosines rounded
// once, as realm_core's RopeFrequencies::fill does; a block needs them once.
#include "kv.cuh"

constexpr u32 THREADS = 128;
constexpr u32 HEADS_A_BLOCK = 8;

struct RopeParams {
    StepView step;
    KvLayerView kv;
    // Radians a position, a pair each.
    const double* frequencies;
    double magnitude;
    // [rows, heads · head_dim]; the output may be the input.
    const float* query;
    float* output;
    // [rows, kv_heads · head_dim]; no keys and values where kv.kv_heads is 0.
    const float* key;
    const float* value;
    u32 heads;
    u32 head_dim;
    // The first 2 · pairs elements of a head are rotated.
    u32 pairs;
    // Pairs are (2i, 2i + 1), not (i, i + pairs).
    u32 adjacent;
};

// A pair's cosine and sine.
struct Turn {
    float cosine, sine;

    DEVICE float first(float a, float b) const { return fmaf(a, cosine, -(b * sine)); }
    DEVICE float second(float a, float b) const { return fmaf(a, sine, b * cosine); }
};

// Sine and cosine for angles up to 2^32, within 1e-15. CUDA's own function reduces larger ones, too, and
// takes a stack for it; and this one has the same bits on every device.
DEVICE void sine_cosine(double angle, double& sine, double& cosine) {
    // The Taylor series of (sin(r) / r - 1) / r^2 and (cos(r) - 1) / r^2 in r^2, highest power first:
    // enough of them for |r| <= pi/4.
    constexpr double SINE[7] = {-7.647163731819816e-13,
                                1.6059043836821613e-10,
                                -2.505210838544172e-08,
                                2.7557319223985893e-06,
                                -0.0001984126984126984,
                                0.008333333333333333,
                                -0.16666666666666666};
    constexpr double COSINE[8] = {4.779477332387385e-14, -1.1470745597729725e-11,
                                  2.08767569878681e-09,  -2.755731922398589e-07,
                                  2.48015873015873e-05,  -0.001388888888888889,
                                  0.041666666666666664,  -0.5};
    const double quarters = rint(angle * 0.6366197723675814);
    // pi/2 in two parts: the first difference is small and so loses nothing.
    double r = fma(-quarters, 1.5707963267948966, angle);
    r = fma(-quarters, 6.123233995736766e-17, r);
    const double square = r * r;
    double s = SINE[0], c = COSINE[0];
#pragma unroll
    for (u32 i = 1; i < 7; i++) s = fma(s, square, SINE[i]);
#pragma unroll
    for (u32 i = 1; i < 8; i++) c = fma(c, square, COSINE[i]);
    s = fma(s * square, r, r);
    c = fma(c, square, 1.0);
    const u32 quadrant = u32(i64(quarters)) & 3;
    sine = quadrant & 1 ? c : s;
    cosine = quadrant & 1 ? s : c;
    if (quadrant & 2) sine = -sine;
    if ((quadrant + 1) & 2) cosine = -cosine;
}

DEVICE void fill_turns(const RopeParams& p, Turn* turns, u32 position) {
    for (u32 pair = thread_index(); pair < p.pairs; pair += THREADS) {
        double sine, cosine;
        sine_cosine(double(position) * p.frequencies[pair], sine, cosine);
        turns[pair] = {float(cosine * p.magnitude), float(sine * p.magnitude)};
    }
}

// The two elements of a pair.
DEVICE u32 first_of(const RopeParams& p, u32 pair) { return p.adjacent ? 2 * pair : pair; }
DEVICE u32 second_of(const RopeParams& p, u32 pair) {
    return p.adjacent ? 2 * pair + 1 : pair + p.pairs;
}

// Rotates a head by pairs: a lane reads both elements before it writes them.
DEVICE void rotate_head(const RopeParams& p, const Turn* turns, const float* from, float* to) {
    for (u32 pair = lane(); pair < p.pairs; pair += 32) {
        const u32 one = first_of(p, pair), two = second_of(p, pair);
        const float a = from[one], b = from[two];
        to[one] = turns[pair].first(a, b);
        to[two] = turns[pair].second(a, b);
    }
    for (u32 e = 2 * p.pairs + lane(); e < p.head_dim; e += 32) to[e] = from[e];
}

// One element of a rotated head.
DEVICE float rotated(const RopeParams& p, const Turn* turns, const float* from, u32 e) {
    if (e >= 2 * p.pairs) return from[e];
    const u32 pair = p.adjacent ? e / 2 : e % p.pairs;
    const u32 one = first_of(p, pair);
    const float a = from[one], b = from[second_of(p, pair)];
    return e == one ? turns[pair].first(a, b) : turns[pair].second(a, b);
}

// Stores a warp's 32 elements as realm_core's Q8_0 encodes them: NaN is 0, magnitudes end at 1e9, the
// largest becomes ±127, ties are rounded away from 0.
DEVICE void store_q8_0(u8* quant, u16* scale, float value) {
    value = value != value ? 0.0f : fminf(fmaxf(value, -1e9f), 1e9f);
    float most = fabsf(value);
    for (u32 bit = 1; bit < 32; bit *= 2) most = fmaxf(most, shuffle_xor(most, bit));
    const float d = fminf(most / 127.0f, 65504.0f);
    const float inverse = 1.0f / d;
    const float q = value * (inverse <= 3.402823466e38f ? inverse : 0.0f);
    const float limited = fminf(fmaxf(q, -127.0f), 127.0f);
    *quant = u8(i32(limited + copysignf(0.49999997f, limited)));
    if (lane() == 0) *scale = f16_bits(d);
}

// Stores elements first .. first + 32 of a token's key or value, a lane each.
DEVICE void store_span(const KvLayerView& kv, u8* tile, u32 token, u32 first, float value) {
    const u32 e = first + lane();
    if (kv.kind == KV_KIND_Q8_0) {
        const u32 scales = kv.head_dim / KV_SCALE_SPAN;
        u16* to = reinterpret_cast<u16*>(tile + KV_BLOCK_TOKENS * kv.head_dim);
        store_q8_0(tile + token * kv.head_dim + e, to + token * scales + first / 32, value);
        return;
    }
    if (e >= kv.head_dim) return;
    const u32 at = token * kv.head_dim + e;
    if (kv.kind == KV_KIND_F32) {
        reinterpret_cast<float*>(tile)[at] = value;
    } else {
        const bool half = kv.kind == KV_KIND_F16;
        reinterpret_cast<u16*>(tile)[at] = half ? f16_bits(value) : bf16_bits(value);
    }
}

KERNEL(rope_kv_write, RopeParams, THREADS) {
    Turn* turns = reinterpret_cast<Turn*>(dynamic_shared());
    const u32 row_at = block_y();
    if (row_at >= p.step.counts->rows) return wait_for_predecessor();
    // Positions, tables and frequencies are older than the step.
    const Row row = p.step.rows[row_at];
    fill_turns(p, turns, row.position);
    const u32 kv_heads = p.kv.kv_heads;
    u32 block = 0;
    if (kv_heads > 0) block = block_of(p.step, p.step.sequences[row.sequence], row.position);
    sync_block();
    let_successor_start();
    wait_for_predecessor();

    const u32 start = block_x() * HEADS_A_BLOCK;
    const u32 end = min(start + HEADS_A_BLOCK, p.heads + 2 * kv_heads);
    for (u32 at = start + warp(); at < end; at += THREADS / 32) {
        if (at < p.heads) {
            const size_t offset = (size_t(row_at) * p.heads + at) * p.head_dim;
            rotate_head(p, turns, p.query + offset, p.output + offset);
            continue;
        }
        const bool is_value = at - p.heads >= kv_heads;
        const u32 head = (at - p.heads) % kv_heads;
        const float* from = is_value ? p.value : p.key;
        from += (size_t(row_at) * kv_heads + head) * p.head_dim;
        u8* tile = (is_value ? p.kv.values : p.kv.keys) + tile_offset(p.kv, block, head);
        for (u32 first = 0; first < p.head_dim; first += 32) {
            const u32 e = first + lane();
            float value = 0.0f;
            if (e < p.head_dim) value = is_value ? from[e] : rotated(p, turns, from, e);
            store_span(p.kv, tile, row.position % KV_BLOCK_TOKENS, first, value);
        }
    }
}
