// A stage's scales as f32 in shared memory, and weights made of them.
#pragma once
#include "formats.cuh"

// COUNT floats, aligned to so many, or to four.
template <u32 COUNT>
DEVICE void load_floats(const float* from, float (&to)[COUNT]) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i += 4) {
            const f32x4 v = *reinterpret_cast<const f32x4*>(from + i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    } else if constexpr (COUNT == 2) {
        const f32x2 v = *reinterpret_cast<const f32x2*>(from);
        to[0] = v.x, to[1] = v.y;
    } else {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) to[i] = from[i];
    }
}
template <u32 COUNT>
DEVICE void store_floats(float* to, const float (&from)[COUNT]) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i += 4) {
            *reinterpret_cast<f32x4*>(to + i) =
                f32x4{from[i], from[i + 1], from[i + 2], from[i + 3]};
        }
    } else if constexpr (COUNT == 2) {
        *reinterpret_cast<f32x2*>(to) = f32x2{from[0], from[1]};
    } else {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) to[i] = from[i];
    }
}

// What the tensor cores leave to be added for each unit of the activations' sum, times −1.
template <class F, class In>
DEVICE float sum_factor(float scale, float min) {
    return fmaf(-float(In::template BIAS<F::BITS>), scale, -min);
}

// A stage's scales, and sum_factors, as f32 in the warp's shared memory: [16 rows][groups][1 or 2].
// Its lanes decode them once instead of four times.
template <class F, class In, bool FLOAT = F::FLOAT>
struct Scales {
    static constexpr u32 WIDTH = 1;
    static constexpr u32 CHUNK = 1;
    static constexpr u32 BYTES = 0;
};
template <class F, class In>
struct Scales<F, In, false> {
    static constexpr u32 WIDTH = F::HAS_MIN ? 2 : 1;
    // Floats of a row and chunk; from row to row, which then lie in different banks.
    static constexpr u32 CHUNK = 64 / F::GROUP * WIDTH;
    static constexpr u32 ROW = 4 * CHUNK + 4;
    static constexpr u32 BYTES = 16 * ROW * 4;
    // Pairs of groups of a row that a lane decodes: those of half a stage.
    static constexpr u32 PAIRS = 256 / F::GROUP / 4;

    // A stage of `tiles` tiles at `planes`; zeros stand for the rest, whose integers, being finite,
    // then add nothing. Lane 2 r + i does half i of row r.
    static DEVICE void decode(float* table, const u8* planes, u32 tiles) {
        const u32 row = lane() / 2, half = lane() % 2;
        float values[PAIRS * 2 * WIDTH];
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++) {
            const u32 pair = half * PAIRS + i, tile = pair / F::PAIRS;
            float scale[2], min[2];
            F::pair(planes + tile * F::TILE_BYTES, row, pair % F::PAIRS, scale, min);
            const bool there = F::STAGE_TILES == 1 || tile < tiles;
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                float* to = values + (2 * i + j) * WIDTH;
                to[0] = there ? scale[j] : 0.0f;
                if constexpr (F::HAS_MIN)
                    to[1] = there ? sum_factor<F, In>(scale[j], min[j]) : 0.0f;
            }
        }
        store_floats(table + ROW * row + half * (PAIRS * 2 * WIDTH), values);
    }
};

// The scales of weights that become f32: of the integers that `field` makes.
template <class F>
using WeightScales = Scales<F, InBf16>;

// A form's bytes, made ready for `field`: fields of fewer than 8 bits alone, below the lowest bit of
// an exponent.
template <class F>
DEVICE u32 fields(u32 form) {
    if constexpr (F::BITS == 8) {
        return form;
    } else {
        constexpr u32 MASK = ((1u << F::BITS) - 1) << (7 - F::BITS);
        return and_or(form, four_times(MASK), four_times((127 + F::BITS) % 2 << 7));
    }
}

// Byte i of fields as f32: the bias InBf16::BIAS more than the field; of 8 bits, the signed weight.
template <class F>
DEVICE float field(u32 fields, u32 i) {
    if constexpr (F::BITS == 8) {
        return bits_float(byte_perm(fields, 0x47000000, 0x7404 | i << 4)) -
               float(32768 + F::ZERO);
    } else {
        constexpr u32 EXPONENT = (127 + F::BITS) / 2 << 24;
        return bits_float(byte_perm(fields, EXPONENT, 0x7044 | i << 8));
    }
}

// The fragment of a step of a chunk: weights as f32, rounded once. `low` and `high` are what
// WeightScales has of the step's group for the lane's rows g and g + 8.
//
// Where a format has no minimum, weights are exact before they are rounded: a scale has so few bits
// that its multiples need no rounding. Those of Q8_K are rounded twice, like in its definition.
template <class F, class In, u32 WIDTH>
DEVICE void dequantized_group(const typename F::Chunk& chunk, u32 step, const float (&low)[WIDTH],
                              const float (&high)[WIDTH], u32 (&a)[4]) {
    if constexpr (F::FLOAT) {
        fragment<F, In>(chunk, step, a);
    } else {
        u32 form[4];
        F::forms(chunk, step, form);
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            const float (&row)[WIDTH] = r == 0 ? low : high;
            const u32 bytes = fields<F>(form[r]);
            float value[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float integer = field<F>(bytes, i);
                if constexpr (F::BITS == 8) {
                    value[i] = row[0] * integer;
                } else if constexpr (F::HAS_MIN) {
                    value[i] = fmaf(row[0], integer, row[1]);
                } else {
                    constexpr u32 BIAS = InBf16::template BIAS<F::BITS>;
                    value[i] = fmaf(row[0], integer, row[0] * -float(BIAS + F::ZERO));
                }
            }
            a[r] = In::pack(value[0], value[2]);
            a[2 + r] = In::pack(value[1], value[3]);
        }
    }
}

// The same, `low` and `high` being what WeightScales has of the whole chunk.
template <class F, class In, u32 COUNT>
DEVICE void dequantized(const typename F::Chunk& chunk, u32 step, const float (&low)[COUNT],
                        const float (&high)[COUNT], u32 (&a)[4]) {
    constexpr u32 WIDTH = WeightScales<F>::WIDTH, STEPS = 4 * WIDTH / COUNT;
    float of_low[WIDTH], of_high[WIDTH];
#pragma unroll
    for (u32 i = 0; i < WIDTH; i++) {
        of_low[i] = low[step / STEPS * WIDTH + i];
        of_high[i] = high[step / STEPS * WIDTH + i];
    }
    dequantized_group<F, In>(chunk, step, of_low, of_high, a);
}
