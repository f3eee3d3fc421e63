// A warp's part of attention in f32 arithmetic, for caches in f32.
//
// A warp looks at 32 / LANES tokens side by side: a lane holds SIZE elements of its token's key, then of
// its value, and the same elements of the queries and of the sums in registers. Every lane copies what
// it reads itself. The lanes' shares of a score are added so that each lane ends with one score, of its
// own token and head: exponentials are computed once.
#pragma once
#include "attention_stream.cuh"

constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

template <u32 WARPS_, u32 LANES_, u32 SIZE_, u32 HEADS_>
struct LaneShape {
    static constexpr bool SHARES = false;
    static constexpr u32 WARPS = WARPS_, LANES = LANES_, SIZE = SIZE_, HEADS = HEADS_;
    // Elements that a row has room for.
    static constexpr u32 DIM = LANES * SIZE;
    // Tokens side by side.
    static constexpr u32 GROUPS = 32 / LANES;
    // Elements that a lane copies and loads at once.
    static constexpr u32 UNIT = 4, UNIT_BYTES = 16;
    static constexpr u32 UNITS = SIZE / UNIT;
    // Tokens of a piece, and how many each group has of them.
    static constexpr u32 PIECE = 2048 / (DIM * Cache::BYTES);
    static constexpr u32 STEPS = PIECE / GROUPS;
    // Tokens of a group whose scores are reduced together.
    static constexpr u32 TOKENS = smaller(smaller(LANES / HEADS, 4), STEPS);
    static constexpr u32 ROUNDS = STEPS / TOKENS;
    static constexpr u32 SCORES = TOKENS * HEADS;
    // A slot: [STEPS][UNITS][32 lanes] units.
    static constexpr u32 UNITS_BYTES = PIECE * DIM * Cache::BYTES, SLOT_BYTES = UNITS_BYTES;
    static constexpr u32 SLOTS = 4;
    // Softmaxes of a block.
    static constexpr u32 PARTS = WARPS * GROUPS;
    static_assert(KV_BLOCK_TOKENS % PIECE == 0 && STEPS % TOKENS == 0 && SCORES <= LANES, "");
    static_assert(PARTS * HEADS <= WARPS * 32, "");

    // Where a lane's unit starts in a row.
    static DEVICE u32 element(u32 unit) { return (unit * LANES + lane() % LANES) * UNIT; }

    // Where it lies in a slot.
    static DEVICE u32 at(u32 step, u32 unit) {
        return ((step * UNITS + unit) * 32 + lane()) * UNIT_BYTES;
    }

    static DEVICE void copy(const Stream<LaneShape>& stream, const u8* from, u8* to, u32 token) {
        from += (token % KV_BLOCK_TOKENS + lane() / LANES) * stream.row_bytes;
        from += element(0) * Cache::BYTES;
        const u32 stride = GROUPS * stream.row_bytes;
        if (stream.is_whole(token)) {
#pragma unroll
            for (u32 unit = 0; unit < UNITS; unit++) {
                if (element(unit) >= stream.head_dim) continue;
#pragma unroll
                for (u32 step = 0; step < STEPS; step++) {
                    copy_async16(to + at(step, unit),
                                 from + step * stride + unit * LANES * UNIT_BYTES);
                }
            }
            return;
        }
#pragma unroll 1
        for (u32 step = 0; step < STEPS; step++) {
            const bool seen = stream.is_seen(token + step * GROUPS + lane() / LANES);
            for (u32 unit = 0; unit < UNITS; unit++) {
                if (!seen) {
                    *reinterpret_cast<u32x4*>(to + at(step, unit)) = {0, 0, 0, 0};
                } else if (element(unit) < stream.head_dim) {
                    copy_async16(to + at(step, unit),
                                 from + step * stride + unit * LANES * UNIT_BYTES);
                }
            }
        }
    }

    // A unit of the group's token of a step.
    static DEVICE f32x4 load(const Stream<LaneShape>& stream, u32 half, u32 step, u32 unit) {
        return *reinterpret_cast<const f32x4*>(stream.slot(half) + at(step, unit));
    }
};

// The lane of a group that `reduce` gives a score to, and the score that it gives a lane: the bits of
// either, below COUNT, in reverse order give the other.
template <u32 COUNT>
DEVICE u32 reversed(u32 from) {
    u32 to = 0;
#pragma unroll
    for (u32 bit = 1, half = COUNT / 2; half > 0; bit *= 2, half /= 2) {
        if (from & half) to |= bit;
    }
    return to;
}

// Adds the shares that a group's lanes have of COUNT scores. Each exchange halves the scores that a lane
// goes on with: HALF is what is left of them, BIT the exchange.
template <u32 LANES, u32 HALF, u32 BIT = 1, u32 COUNT>
DEVICE float reduce(float (&s)[COUNT]) {
    if constexpr (HALF > 0) {
        const bool upper = lane() & BIT;
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            const float low = s[i], high = s[i + HALF];
            s[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, BIT);
        }
        return reduce<LANES, HALF / 2, BIT * 2>(s);
    } else if constexpr (BIT < LANES) {
        s[0] += shuffle_xor(s[0], BIT);
        return reduce<LANES, 0, BIT * 2>(s);
    } else {
        return s[0];
    }
}

// A softmax under way: of a group's tokens, HEADS heads. A lane keeps the reference and the total of the
// one head whose scores it is given, the total of its own tokens only.
template <class S>
struct Softmax {
    // A score may exceed the reference by this much before the sums are taken relative to a new one: sums
    // grow by e^8 at most, and in f32 nothing is lost.
    static constexpr float LEEWAY = 8.0f;

    float sums[S::HEADS][S::SIZE];
    float reference;
    float total;

    // Scores become weights relative to the reference.
    DEVICE void weigh(float (&scores)[S::ROUNDS]) {
        float most = scores[0];
#pragma unroll
        for (u32 round = 1; round < S::ROUNDS; round++) most = fmaxf(most, scores[round]);
#pragma unroll
        for (u32 bit = 1; bit < S::TOKENS; bit *= 2) most = fmaxf(most, shuffle_xor(most, bit));
        const bool raise = most > reference + LEEWAY;
        if (any(raise)) {
            const float factor = raise ? expf(reference - most) : 1.0f;
            reference = raise ? most : reference;
            total *= factor;
#pragma unroll
            for (u32 head = 0; head < S::HEADS; head++) {
                const float of_head = from_holder(factor, head);
#pragma unroll
                for (u32 i = 0; i < S::SIZE; i++) sums[head][i] *= of_head;
            }
        }
#pragma unroll
        for (u32 round = 0; round < S::ROUNDS; round++) {
            scores[round] = scores[round] == NOTHING ? 0.0f : expf(scores[round] - reference);
            total += scores[round];
        }
    }

    static DEVICE float from_holder(float value, u32 score) {
        return shuffle(value, lane() / S::LANES * S::LANES + reversed<S::SCORES>(score));
    }
};

template <class S>
DEVICE void score(const AttentionParams& p, const Stream<S>& stream, u32 half,
                  const float (&query)[S::HEADS][S::SIZE], float (&scores)[S::ROUNDS]) {
    const u32 mine = reversed<S::SCORES>(lane() % S::LANES) / S::HEADS;
    const u32 token = stream.piece(half) * S::PIECE + lane() / S::LANES;
#pragma unroll
    for (u32 round = 0; round < S::ROUNDS; round++) {
        float shares[S::SCORES];
#pragma unroll
        for (u32 i = 0; i < S::TOKENS; i++) {
            float* share = shares + i * S::HEADS;
#pragma unroll
            for (u32 head = 0; head < S::HEADS; head++) share[head] = 0.0f;
#pragma unroll
            for (u32 unit = 0; unit < S::UNITS; unit++) {
                const f32x4 key = S::load(stream, half, round * S::TOKENS + i, unit);
#pragma unroll
                for (u32 head = 0; head < S::HEADS; head++) {
                    const float* q = query[head] + unit * S::UNIT;
                    share[head] = fmaf(q[0], key.x, share[head]);
                    share[head] = fmaf(q[1], key.y, share[head]);
                    share[head] = fmaf(q[2], key.z, share[head]);
                    share[head] = fmaf(q[3], key.w, share[head]);
                }
            }
        }
        float value = reduce<S::LANES, S::SCORES / 2>(shares) * p.scale;
        if (p.soft_cap > 0.0f) value = p.soft_cap * tanhf(value / p.soft_cap);
        const u32 at = token + (round * S::TOKENS + mine) * S::GROUPS;
        scores[round] = stream.is_seen(at) ? value : NOTHING;
    }
}

template <class S>
DEVICE void add_values(const Stream<S>& stream, u32 half, const float (&weights)[S::ROUNDS],
                       Softmax<S>& softmax) {
#pragma unroll
    for (u32 round = 0; round < S::ROUNDS; round++) {
#pragma unroll
        for (u32 i = 0; i < S::TOKENS; i++) {
            float weight[S::HEADS];
#pragma unroll
            for (u32 head = 0; head < S::HEADS; head++) {
                weight[head] = softmax.from_holder(weights[round], i * S::HEADS + head);
            }
#pragma unroll
            for (u32 unit = 0; unit < S::UNITS; unit++) {
                const f32x4 value = S::load(stream, half, round * S::TOKENS + i, unit);
#pragma unroll
                for (u32 head = 0; head < S::HEADS; head++) {
                    float* sums = softmax.sums[head] + unit * S::UNIT;
                    sums[0] = fmaf(weight[head], value.x, sums[0]);
                    sums[1] = fmaf(weight[head], value.y, sums[1]);
                    sums[2] = fmaf(weight[head], value.z, sums[2]);
                    sums[3] = fmaf(weight[head], value.w, sums[3]);
                }
            }
        }
    }
}

// A warp's part of a split.
template <class S>
struct LaneWarp {
    float query[S::HEADS][S::SIZE];
    Softmax<S> softmax;

    DEVICE void load(const AttentionParams& p, u32 row, u32 first_head, u32 heads) {
        softmax.reference = NOTHING;
        softmax.total = 0.0f;
        const float* from = p.query + (size_t(row) * p.heads + first_head) * p.kv.head_dim;
#pragma unroll
        for (u32 head = 0; head < S::HEADS; head++) {
#pragma unroll
            for (u32 i = 0; i < S::SIZE; i += 4) {
                const u32 at = S::element(i / S::UNIT) + i % S::UNIT;
                f32x4 v = {0.0f, 0.0f, 0.0f, 0.0f};
                if (head < heads && at < p.kv.head_dim) {
                    v = *reinterpret_cast<const f32x4*>(from + head * p.kv.head_dim + at);
                }
                query[head][i] = v.x, query[head][i + 1] = v.y;
                query[head][i + 2] = v.z, query[head][i + 3] = v.w;
                for (u32 j = i; j < i + 4; j++) softmax.sums[head][j] = 0.0f;
            }
        }
    }

    DEVICE void run(const AttentionParams& p, const Stream<S>& stream) {
        for (u32 half = 0; stream.is_there(half); half += 2) {
            float weights[S::ROUNDS];
            stream.arrive();
            score<S>(p, stream, half, query, weights);
            stream.leave(half);
            softmax.weigh(weights);
            stream.arrive();
            add_values<S>(stream, half + 1, weights, softmax);
            stream.leave(half + 1);
        }
#pragma unroll
        for (u32 bit = 1; bit < S::TOKENS; bit *= 2) {
            softmax.total += shuffle_xor(softmax.total, bit);
        }
    }

    // Stores the sums [PARTS, HEADS, DIM], and [PARTS, HEADS] references and totals.
    DEVICE void put(float* to_sums, float* references, float* totals) const {
        const u32 part = thread_index() / S::LANES * S::HEADS, in_group = lane() % S::LANES;
        if (in_group < S::SCORES && reversed<S::SCORES>(in_group) < S::HEADS) {
            references[part + reversed<S::SCORES>(in_group)] = softmax.reference;
            totals[part + reversed<S::SCORES>(in_group)] = softmax.total;
        }
#pragma unroll
        for (u32 head = 0; head < S::HEADS; head++) {
            float* to = to_sums + (part + head) * S::DIM;
#pragma unroll
            for (u32 i = 0; i < S::SIZE; i += 4) {
                const float* from = softmax.sums[head] + i;
                const u32 at = S::element(i / S::UNIT) + i % S::UNIT;
                *reinterpret_cast<f32x4*>(to + at) = {from[0], from[1], from[2], from[3]};
            }
        }
    }
};
