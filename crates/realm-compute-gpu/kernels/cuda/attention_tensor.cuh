// A warp's part of attention on tensor cores, for caches whose elements are 16 bits at most: pieces of 16
// tokens, up to eight query heads. What is f32 goes in as parts whose sum is exact, or nearly: three of
// bf16, or two of f16, which hold 22 bits and a sign and so need numbers near the upper end of their
// range. Keys and values go in as they are.
//
// Scores are [head, token] sums of the queries' parts times keys: rows 0 to 7 have the first parts, rows 8
// to 15 the second ones. So lane l has the scores of head l / 4 and of tokens 2 (l % 4), 2 (l % 4) + 1 of
// each eight. That is how weights go into the sums of values, which are [dim, head].
#pragma once
#include "attention_stream.cuh"

template <u32 DIM_>
struct TensorShape {
    static constexpr bool SHARES = true;
    static constexpr u32 WARPS = 4, HEADS = 8, DIM = DIM_, PIECE = 16;
    static constexpr u32 ROW_BYTES = DIM * Cache::BYTES;
    static constexpr u32 CHUNKS = ROW_BYTES / 16;
    // A slot: the rows, then the scales as they lie in the cache.
    static constexpr u32 UNITS_BYTES = PIECE * ROW_BYTES;
    static constexpr u32 SLOT_BYTES =
        UNITS_BYTES + (Cache::SCALED ? PIECE * DIM / KV_SCALE_SPAN * 2 : 0);
    static constexpr u32 SLOTS = ROW_BYTES > 256 ? 2 : 4;
    // Softmaxes of a block.
    static constexpr u32 PARTS = WARPS;
    // Products of 16 elements.
    static constexpr u32 STEPS = DIM / 16;

    // Where 16 bytes of a row lie in a slot: those of eight rows, one below the other, are in different
    // banks.
    static DEVICE u32 at(u32 row, u32 chunk) {
        const u32 turn = CHUNKS >= 8 ? row % 8 : row / (8 / CHUNKS) % CHUNKS;
        return row * ROW_BYTES + (chunk ^ turn) * 16;
    }

    static DEVICE void copy(const Stream<TensorShape>& stream, const u8* from, u8* to, u32 token) {
        constexpr u32 AT_ONCE = 32 / CHUNKS;
        const u32 row = lane() / CHUNKS, chunk = lane() % CHUNKS, stride = stream.row_bytes;
        if (chunk * 16 >= stride) return;
        from += (token % KV_BLOCK_TOKENS + row) * stride + chunk * 16;
        if (stream.is_whole(token)) {
#pragma unroll
            for (u32 i = 0; i < PIECE; i += AT_ONCE) {
                copy_async16(to + at(i + row, chunk), from + i * stride);
            }
            return;
        }
#pragma unroll 1
        for (u32 i = 0; i < PIECE; i += AT_ONCE) {
            u8* there = to + at(i + row, chunk);
            if (stream.is_seen(token + i + row)) {
                copy_async16(there, from + i * stride);
            } else {
                *reinterpret_cast<u32x4*>(there) = {0, 0, 0, 0};
            }
        }
    }
};

// Two numbers as parts in the cache's kind of 16 bits; what is left of them.
DEVICE u32 part_f16(float& x, float& y) {
    const u32 part = pack_f16(x, y);
    x -= f16_value(u16(part)), y -= f16_value(u16(part >> 16));
    return part;
}
DEVICE u32 part_bf16(float& x, float& y) {
    const u32 part = pack_bf16(x, y);
    x -= bits_float(part << 16), y -= bits_float(part & 0xffff0000u);
    return part;
}

// Bytes 0 and 2 of a word, integers: in f16 the integer plus 1152 less 1152; in bf16, which has no room
// for that, its lower seven bits less its sign's.
DEVICE u32 integers_f16(u32 word) {
    return sub_f16x2(and_xor(word, 0x00ff00ffu, 0x64806480u), 0x64806480u);
}
DEVICE u32 integers_bf16(u32 word) {
    return sub_bf16x2(and_or(word, 0x007f007fu, 0x43004300u),
                      and_or(word, 0x00800080u, 0x43004300u));
}

// The power of two that brings `most` to the upper end of what f16 holds, as far as sums stay small.
DEVICE float lift_of(float most) {
    const u32 exponent = float_bits(most) >> 23;
    return bits_float(min(max(267u - min(exponent, 266u), 1u), 253u) << 23);
}

template <class S>
struct TensorWarp {
    // Whether keys, and values, go in as f16.
    static constexpr bool F16_KEYS = Cache::KIND != KV_KIND_BF16;
    static constexpr bool F16_VALUES = Cache::KIND == KV_KIND_F16;
    // By how much a score may exceed the reference, and what weights are multiplied by, so that even
    // small ones have all their bits: e^2 times 2^13 is an f16.
    static constexpr float LEEWAY = F16_VALUES ? 2.0f : 8.0f;
    static constexpr float LIFT = F16_VALUES ? 8192.0f : 1.0f;

    // Whether the third parts of the queries are in shared memory: with large heads registers are short.
    static constexpr bool SHARED_REST = !F16_KEYS && S::DIM > 128;

    // Two parts, and the third.
    u32 query[S::STEPS][4];
    u32x2 rest[F16_KEYS || SHARED_REST ? 1 : S::STEPS];
    float sums[S::STEPS][4];
    // What undoes the power of two that the head's queries were multiplied by, times the scale.
    float factor;
    float reference;
    float total;

    DEVICE void load(const AttentionParams& p, u32 row, u32 first_head, u32 heads) {
        const u32 head = lane() / 4;
        const float* from = p.query + (size_t(row) * p.heads + first_head + head) * p.kv.head_dim;
        float x[S::STEPS][4];
        float most = 0.0f;
#pragma unroll
        for (u32 step = 0; step < S::STEPS; step++) {
#pragma unroll
            for (u32 i = 0; i < 4; i += 2) {
                const u32 at = step * 16 + element(i);
                f32x2 v = {0.0f, 0.0f};
                if (head < heads && at < p.kv.head_dim) {
                    v = *reinterpret_cast<const f32x2*>(from + at);
                }
                x[step][i] = v.x, x[step][i + 1] = v.y;
                most = fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y)));
            }
        }
        most = fmaxf(most, shuffle_xor(most, 1));
        most = fmaxf(most, shuffle_xor(most, 2));
        const float lift = F16_KEYS ? lift_of(most) : 1.0f;
        factor = p.scale * (F16_KEYS ? bits_float((254u << 23) - float_bits(lift)) : 1.0f);
#pragma unroll
        for (u32 step = 0; step < S::STEPS; step++) {
            float* v = x[step];
#pragma unroll
            for (u32 i = 0; i < 4; i++) v[i] *= lift, sums[step][i] = 0.0f;
            // Keys of 8 bits come as elements 0 and 2 of four, then 1 and 3.
            float& second = Cache::SCALED ? v[2] : v[1];
            float& third = Cache::SCALED ? v[1] : v[2];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                query[step][i] = F16_KEYS ? part_f16(v[0], second) : part_bf16(v[0], second);
                query[step][i + 2] = F16_KEYS ? part_f16(third, v[3]) : part_bf16(third, v[3]);
            }
            const u32x2 left = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
            if constexpr (SHARED_REST) {
                if (step % S::WARPS == warp()) shared_rest()[step * 32 + lane()] = left;
            } else if constexpr (!F16_KEYS) {
                rest[step] = left;
            }
        }
        if constexpr (SHARED_REST) sync_block();
        reference = NOTHING;
        total = 0.0f;
    }

    // All warps have the same queries.
    static DEVICE u32x2* shared_rest() {
        SHARED(u32x2, of_block, SHARED_REST ? S::STEPS * 32 : 1);
        return of_block;
    }

    DEVICE u32x2 third_part(u32 step) const {
        if constexpr (SHARED_REST) {
            return shared_rest()[step * 32 + lane()];
        } else {
            return rest[step];
        }
    }

    // Which of 16 elements a lane's number i is.
    static DEVICE u32 element(u32 i) {
        if (Cache::SCALED) return lane() % 4 * 4 + i;
        return lane() % 4 * 2 + i / 2 * 8 + i % 2;
    }

    // Which of a piece's tokens a lane's number i is.
    static DEVICE u32 token(u32 i) { return i / 2 * 8 + lane() % 4 * 2 + i % 2; }

    DEVICE void multiply_query(float (&dots)[4], u32 step, u32 key0, u32 key1) const {
        if constexpr (F16_KEYS) {
            mma_f16(dots, query[step], key0, key1);
        } else {
            const u32x2 part = third_part(step);
            const u32 third[4] = {part.x, 0, part.y, 0};
            mma_bf16(dots, query[step], key0, key1);
            mma_bf16(dots, third, key0, key1);
        }
    }

    // The scores of eight tokens: two a lane.
    DEVICE void score(const Stream<S>& stream, u32 half, u32 eight, float* scores) const {
        const u8* row = stream.slot(half);
        scores[0] = scores[1] = 0.0f;
        // Sums of 128 bytes' products are added up: chains are short, and round less.
        constexpr u32 SPAN = Cache::SCALED ? 4 : 8;
#pragma unroll
        for (u32 span = 0; span < S::CHUNKS; span += SPAN) {
            float dots[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (u32 chunk = span; chunk < span + SPAN; chunk += 4) {
                u32 keys[4];
                load_matrix_x4(keys, row + S::at(eight * 8 + lane() % 8, chunk + lane() / 8));
                if constexpr (Cache::SCALED) {
                    score_scaled(stream, half, eight, chunk, keys, scores);
                } else {
                    multiply_query(dots, chunk / 2, keys[0], keys[1]);
                    multiply_query(dots, chunk / 2 + 1, keys[2], keys[3]);
                }
            }
            if constexpr (!Cache::SCALED) {
                scores[0] += dots[0] + dots[2];
                scores[1] += dots[1] + dots[3];
            }
        }
    }

    // Adds the share of four chunks of integers: a span of the scales has two.
    DEVICE void score_scaled(const Stream<S>& stream, u32 half, u32 eight, u32 chunk,
                             const u32 (&keys)[4], float* scores) const {
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
            float dots[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (u32 j = i; j < i + 2; j++) {
                multiply_query(dots, chunk + j, integers_f16(keys[j]), integers_f16(keys[j] >> 8));
            }
#pragma unroll
            for (u32 t = 0; t < 2; t++) {
                const float scale = stream.scale(half, token(eight * 2 + t), (chunk + i) / 2);
                scores[t] = fmaf(scale, dots[t] + dots[t + 2], scores[t]);
            }
        }
    }

    // Scores become weights relative to the reference.
    DEVICE void weigh(float (&scores)[4]) {
        float most = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
        most = fmaxf(most, shuffle_xor(most, 1));
        most = fmaxf(most, shuffle_xor(most, 2));
        const bool raise = most > reference + LEEWAY;
        if (any(raise)) {
            const float less = raise ? expf(reference - most) : 1.0f;
            reference = raise ? most : reference;
            total *= less;
            const float of_heads[2] = {shuffle(less, lane() % 4 * 8),
                                       shuffle(less, lane() % 4 * 8 + 4)};
#pragma unroll
            for (u32 step = 0; step < S::STEPS; step++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) sums[step][i] *= of_heads[i % 2];
            }
        }
        // The weight of nothing is 0, also where there was nothing yet.
        const float from = reference == NOTHING ? 0.0f : reference;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            scores[i] = expf(scores[i] - from) * LIFT;
            total += scores[i];
        }
    }

    DEVICE void add_values(const Stream<S>& stream, u32 half, const float (&weights)[4]) {
        const u8* slot = stream.slot(half);
        u32 parts[3][2], values[4];
        if constexpr (Cache::SCALED) {
#pragma unroll
            for (u32 step = 0; step < S::STEPS; step += 2) {
                float scaled[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    scaled[i] = weights[i] * stream.scale(half, token(i), step / 2);
                }
                split(parts, scaled);
                load_matrix_x4_trans(values, slot + S::at(lane() % 16, step + lane() / 16));
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    const u32 low = values[i * 2], high = values[i * 2 + 1];
                    const u32 a[4] = {integers_bf16(low), integers_bf16(low >> 8),
                                      integers_bf16(high), integers_bf16(high >> 8)};
                    multiply_weights(step + i, a, parts);
                }
            }
        } else {
            split(parts, weights);
#pragma unroll
            for (u32 step = 0; step < S::STEPS; step++) {
                const u32 row = lane() / 16 * 8 + lane() % 8;
                load_matrix_x4_trans(values, slot + S::at(row, step * 2 + lane() / 8 % 2));
                multiply_weights(step, values, parts);
            }
        }
    }

    static DEVICE void split(u32 (&parts)[3][2], const float (&weights)[4]) {
        float x[4] = {weights[0], weights[1], weights[2], weights[3]};
#pragma unroll
        for (u32 i = 0; i < 3; i++) {
            parts[i][0] = F16_VALUES ? part_f16(x[0], x[1]) : part_bf16(x[0], x[1]);
            parts[i][1] = F16_VALUES ? part_f16(x[2], x[3]) : part_bf16(x[2], x[3]);
        }
    }

    DEVICE void multiply_weights(u32 step, const u32 (&values)[4], const u32 (&parts)[3][2]) {
        if constexpr (F16_VALUES) {
            mma_f16(sums[step], values, parts[0][0], parts[0][1]);
            mma_f16(sums[step], values, parts[1][0], parts[1][1]);
        } else {
            mma_bf16(sums[step], values, parts[0][0], parts[0][1]);
            mma_bf16(sums[step], values, parts[1][0], parts[1][1]);
            mma_bf16(sums[step], values, parts[2][0], parts[2][1]);
        }
    }

    DEVICE void run(const AttentionParams& p, const Stream<S>& stream) {
        for (u32 half = 0; stream.is_there(half); half += 2) {
            float weights[4];
            stream.arrive();
#pragma unroll
            for (u32 eight = 0; eight < 2; eight++) score(stream, half, eight, weights + eight * 2);
#pragma unroll
            for (u32 i = 0; i < 4; i++) weights[i] *= factor;
            if (p.soft_cap > 0.0f) {
#pragma unroll 1
                for (u32 i = 0; i < 4; i++) {
                    const float capped = p.soft_cap * tanhf(weights[0] / p.soft_cap);
                    weights[0] = weights[1], weights[1] = weights[2], weights[2] = weights[3];
                    weights[3] = capped;
                }
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = stream.piece(half) * S::PIECE + token(i);
                if (!stream.is_seen(at)) weights[i] = NOTHING;
            }
            stream.leave(half);
            weigh(weights);
            stream.arrive();
            add_values(stream, half + 1, weights);
            stream.leave(half + 1);
        }
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
    }

    // Stores the sums [PARTS, HEADS, DIM], and [PARTS, HEADS] references and totals.
    DEVICE void put(float* to_sums, float* references, float* totals) const {
        const u32 part = warp() * S::HEADS;
        if (lane() % 4 == 0) {
            references[part + lane() / 4] = reference;
            totals[part + lane() / 4] = total / LIFT;
        }
        const u32 row = lane() / 4;
#pragma unroll
        for (u32 step = 0; step < S::STEPS; step++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 head = lane() % 4 * 2 + i % 2;
                const u32 dim = step * 16 + (Cache::SCALED ? row * 2 + i / 2 : row + i / 2 * 8);
                to_sums[(part + head) * S::DIM + dim] = sums[step][i] / LIFT;
            }
        }
    }
};
