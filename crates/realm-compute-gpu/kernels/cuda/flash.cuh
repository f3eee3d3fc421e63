// What the kernels of prefill attention share: their parameters, which rows and heads a block has, which
// tokens these see, softmax on fragments of 16 matrix rows, how results are stored. Twin of the struct in
// src/cuda/kernels/flash.rs.
//
// A block has a tile: up to `tile_rows` rows of one sequence, and `block_heads` of the query heads that read
// one KV head. The matrix of its queries has a row for each: matrix row m is the tile's row
// m / block_heads and its head m % block_heads.
//
// What a row sees is summed in steps at fixed positions in its sequence, in order. A step of which it sees
// nothing changes no bit of its sums. So a row's bits depend on its own sequence alone.
#pragma once
#include "cache_types.cuh"

constexpr u32 NO_WINDOW = 0xffffffffu;
constexpr float NOTHING = -__builtin_huge_valf();
constexpr float LOG2_E = 1.4426950408889634f;

struct FlashParams {
    // The layer's keys and values as rows of head_dim elements, [blocks · kv_heads · KV_BLOCK_TOKENS]:
    // for wgmma with caches of the compute type alone.
    TensorMap keys;
    TensorMap values;
    StepView step;
    KvLayerView kv;
    // [rows, heads · head_dim]
    const float* query;
    // [heads], or null.
    const float* sinks;
    Columns target;
    u32 heads;
    // Query heads of a KV head; into how many blocks they are cut, and how many each has at most.
    u32 group;
    u32 subsets;
    u32 block_heads;
    u32 tile_rows;
    u32 causal;
    u32 window;
    float scale;
    // 0 where there is none.
    float soft_cap;
    u32 unused[7];
};
static_assert(sizeof(FlashParams) == 448, "the twin in flash.rs is as long");

// ---- numbers

// 2^x, to 22 bits or so; what is below 2^-126 is 0.
DEVICE float power_of_two(float x) {
#ifdef REALM_EMULATED
    return x < -126.0f ? 0.0f : exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 1 / x, to 23 bits or so.
DEVICE float reciprocal(float x) {
#ifdef REALM_EMULATED
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// a b in both halves, each rounded once.
DEVICE u32 mul_f16x2(u32 a, u32 b) {
#ifdef REALM_EMULATED
    return pack_f16(f16_value(u16(a)) * f16_value(u16(b)),
                    f16_value(u16(a >> 16)) * f16_value(u16(b >> 16)));
#else
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
#endif
}

// The types that products are made of. Weights are multiplied by 2^LIFT, so that small ones keep their bits
// where the type's exponents have a small range. They are 1 at most before that.
struct FlashF16 {
    static constexpr bool NARROW = true;
    static constexpr float LIFT = 8.0f;
    static DEVICE u32 pack(float low, float high) { return pack_f16(low, high); }
    static DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        mma_f16(d, a, b0, b1);
    }
};
struct FlashBf16 {
    static constexpr bool NARROW = false;
    static constexpr float LIFT = 0.0f;
    static DEVICE u32 pack(float low, float high) { return pack_bf16(low, high); }
    static DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        mma_bf16(d, a, b0, b1);
    }
};

// ---- tiles

// The positions [start, end) that a row sees.
struct Visible {
    u32 start, end;
};

DEVICE Visible visible(const FlashParams& p, u32 position, u32 length) {
    const u32 next = position + 1;
    const u32 end = p.causal && next < length ? next : length;
    const u32 start = p.window < next ? next - p.window : 0;
    return {start < end ? start : end, end};
}

struct FlashTile {
    Sequence sequence;
    // The first row of the step, its position, and how many there are.
    u32 row;
    u32 position;
    u32 rows;
    u32 kv_head;
    // First query head, and how many there are.
    u32 head;
    u32 heads;
    // The positions that its rows see: none before and none after; the blocks of the sequence's cache,
    // [first, end), that hold them; and the positions that all rows see.
    Visible range;
    u32 first;
    u32 end;
    Visible common;
};

// Finds the block's tile; every thread calls it, before wait_for_predecessor(). False where there is none.
// Of a sequence those come first that see most.
DEVICE bool find_tile(const FlashParams& p, FlashTile& tile) {
    const u32 parts = p.kv.kv_heads * p.subsets;
    const u32 part = block_x() % parts;
    u32 at = block_x() / parts;
    const u32 sequences = p.step.counts->sequences;
    for (u32 first = 0; first < sequences; first += 32) {
        const u32 own = first + lane();
        u32 tiles = 0;
        if (own < sequences) {
            tiles = (p.step.sequences[own].prefill + p.tile_rows - 1) / p.tile_rows;
        }
        u32 sum = tiles;
#pragma unroll
        for (u32 span = 1; span < 32; span *= 2) {
            const u32 before = shuffle(sum, lane() - min(lane(), span));
            if (lane() >= span) sum += before;
        }
        const u32 all_of_them = shuffle(sum, 31);
        if (at >= all_of_them) {
            at -= all_of_them;
            continue;
        }
        // How many sequences end at or before the tile.
        u32 index = 0;
#pragma unroll
        for (u32 step = 16; step > 0; step /= 2) {
            if (shuffle(sum, index + step - 1) <= at) index += step;
        }
        // Tiles of the sequence that come after it in the order of blocks.
        const u32 after = shuffle(sum, index) - 1 - at;
        const u32 count = shuffle(tiles, index);
        const Sequence sequence = p.step.sequences[first + index];
        const u32 row = (p.causal ? after : count - 1 - after) * p.tile_rows;
        tile.sequence = sequence;
        tile.row = sequence.first + row;
        tile.position = p.step.rows[sequence.first].position + row;
        tile.rows = min(sequence.prefill - row, p.tile_rows);
        tile.kv_head = part / p.subsets;
        const u32 before = part % p.subsets * p.block_heads;
        tile.head = tile.kv_head * p.group + before;
        tile.heads = min(p.group - before, p.block_heads);
        const Visible top = visible(p, tile.position, sequence.length);
        const Visible low = visible(p, tile.position + tile.rows - 1, sequence.length);
        tile.range = {min(top.start, low.end), low.end};
        tile.first = top.start / KV_BLOCK_TOKENS;
        tile.end = (low.end + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
        if (top.start >= low.end) tile.end = tile.first;
        tile.common = {low.start, max(low.start, top.end)};
        return true;
    }
    return false;
}

// Whether all rows see all of `count` tokens: there is nothing to mask.
DEVICE bool all_see(const FlashTile& tile, u32 token, u32 count) {
    return token >= tile.common.start && token + count <= tile.common.end;
}

// What a row of the matrix is. Some are nothing.
struct MatrixRow {
    // Of the tile.
    u32 row, head;
    bool there;
};

DEVICE MatrixRow matrix_row(const FlashParams& p, const FlashTile& tile, u32 m) {
    const u32 row = m / p.block_heads, head = m % p.block_heads;
    return {row, head, row < tile.rows && head < tile.heads};
}

// ---- queries

// The power of two that brings `most` to the upper end of what f16 holds, as far as sums stay small.
DEVICE float lift_of(float most) {
    const u32 exponent = float_bits(most) >> 23;
    return bits_float(min(max(267u - min(exponent, 266u), 1u), 253u) << 23);
}

// Stores the queries as a matrix of ROWS rows and DIM columns in shared memory, zeros where there is
// nothing; 8 elements, `unit` u of row m, are at `to + at(m, u)`. `factors` takes what makes a row's products
// scores in powers of two: positive numbers. With f16 a row is multiplied by a power of two, so that
// its numbers lose bits to rounding alone. Called by WARPS whole warps; `warp` is the caller's.
template <class In, u32 ROWS, u32 DIM, u32 WARPS, class At>
DEVICE void store_queries(const FlashParams& p, const FlashTile& tile, u32 warp, u8* to,
                          float* factors, At at) {
    constexpr u32 PARTS = (DIM + 127) / 128;
#pragma unroll 2
    for (u32 m = warp; m < ROWS; m += WARPS) {
        const MatrixRow its = matrix_row(p, tile, m);
        const float* from = p.query + (size_t(tile.row + its.row) * p.heads + tile.head + its.head) *
                                          p.kv.head_dim;
        f32x4 v[PARTS];
        float most = 0.0f;
#pragma unroll
        for (u32 i = 0; i < PARTS; i++) {
            const u32 col = i * 128 + lane() * 4;
            v[i] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (its.there && col < p.kv.head_dim) v[i] = *reinterpret_cast<const f32x4*>(from + col);
            most = fmaxf(most, fmaxf(fmaxf(fabsf(v[i].x), fabsf(v[i].y)),
                                     fmaxf(fabsf(v[i].z), fabsf(v[i].w))));
        }
        float lift = 1.0f, lower = 1.0f;
        if constexpr (In::NARROW) {
#pragma unroll
            for (u32 bit = 1; bit < 32; bit *= 2) most = fmaxf(most, shuffle_xor(most, bit));
            lift = lift_of(most);
            lower = bits_float((254u << 23) - float_bits(lift));
        }
        float factor = fabsf(p.scale) * lower * LOG2_E;
        // Products with a factor of 0 would not be 0 where nothing is seen.
        if (factor == 0.0f) factor = 1.0f, lift = 0.0f;
        if (p.scale < 0.0f) lift = -lift;
#pragma unroll
        for (u32 i = 0; i < PARTS; i++) {
            const u32 col = i * 128 + lane() * 4;
            const u32x2 packed = {In::pack(v[i].x * lift, v[i].y * lift),
                                  In::pack(v[i].z * lift, v[i].w * lift)};
            if (col < DIM) {
                *reinterpret_cast<u32x2*>(to + at(m, col / 8) + col % 8 * 2) = packed;
            }
        }
        if (lane() == 0) factors[m] = factor;
    }
}

// ---- keys and values

// 8 elements of a cache of integers, as they are there.
struct ScaledUnit {
    u32x2 integers;
    u32 scale;
};

DEVICE ScaledUnit load_scaled(const u8* tile, u32 head_dim, u32 token, u32 unit) {
    const u32 at = token * head_dim + unit * 8;
    const u16* scales = reinterpret_cast<const u16*>(tile + KV_BLOCK_TOKENS * head_dim);
    return {*reinterpret_cast<const u32x2*>(tile + at), scales[at / KV_SCALE_SPAN]};
}

// The same in f16.
DEVICE u32x4 convert_scaled(const ScaledUnit& v) {
    // Integers with the offset 128 make f16 that are 1152 more.
    const u32 low = v.integers.x ^ 0x80808080u, high = v.integers.y ^ 0x80808080u;
    const u32 scale = v.scale * 0x10001u;
    return {mul_f16x2(sub_f16x2(byte_perm(low, 0x64646464u, 0x4140), 0x64806480u), scale),
            mul_f16x2(sub_f16x2(byte_perm(low, 0x64646464u, 0x4342), 0x64806480u), scale),
            mul_f16x2(sub_f16x2(byte_perm(high, 0x64646464u, 0x4140), 0x64806480u), scale),
            mul_f16x2(sub_f16x2(byte_perm(high, 0x64646464u, 0x4342), 0x64806480u), scale)};
}

// 8 elements, `unit` u, of a token of a tile of the cache in the compute type: for caches of other types.
template <class In>
DEVICE u32x4 load_unit(const u8* tile, u32 head_dim, u32 token, u32 unit) {
    if constexpr (Cache::SCALED) {
        return convert_scaled(load_scaled(tile, head_dim, token, unit));
    } else if constexpr (Cache::BYTES == 4) {
        const f32x4* from =
            reinterpret_cast<const f32x4*>(tile + (size_t(token) * head_dim + unit * 8) * 4);
        const f32x4 a = from[0], b = from[1];
        return {In::pack(a.x, a.y), In::pack(a.z, a.w), In::pack(b.x, b.y), In::pack(b.z, b.w)};
    } else {
        return *reinterpret_cast<const u32x4*>(tile + (token * head_dim + unit * 8) * 2);
    }
}

// ---- softmax

// A lane's share of the softmaxes of 16 matrix rows: rows lane / 4 and lane / 4 + 8 of them. Scores come as
// the sums of mma and wgmma: of each eight columns, the lane has 2 (lane % 4) and the next one, of the
// first row, then of the second.
//
// The reference is a whole number of powers of two, so that what it is changed by is exact, and seldom
// anything at all.
template <class In>
struct FlashSoftmax {
    float factor[2];
    // -infinity where nothing was seen yet.
    float top[2];
    // Of the lane's columns.
    float total[2];

    // For rows m and m + 8 of the matrix.
    DEVICE void start(const float* factors, u32 m) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            factor[i] = factors[m + i * 8];
            top[i] = NOTHING;
            total[i] = 0.0f;
        }
    }

    // Before the mask: products become capped scores in powers of two, whose factor is 1 from then on.
    // `own` are the rows' factors.
    template <u32 COUNT>
    DEVICE void cap(float (&s)[COUNT], float soft_cap, const float (&own)[2]) {
        // cap tanh(x) is cap - 2 cap / (e^2x + 1).
        const float whole = soft_cap * LOG2_E, twice_inverse = 2.0f * reciprocal(soft_cap);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            const float twice = s[i] * (own[i / 2 % 2] * twice_inverse);
            s[i] = fmaf(-2.0f * whole, reciprocal(power_of_two(twice) + 1.0f), whole);
        }
        factor[0] = factor[1] = 1.0f;
    }

    // Scores of tokens from `token` on become -infinity where rows m and m + 8 do not see them.
    template <u32 COUNT>
    static DEVICE void mask(const FlashParams& p, const FlashTile& tile, u32 m, float (&s)[COUNT],
                            u32 token) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const MatrixRow its = matrix_row(p, tile, m + half * 8);
            const Visible seen = visible(p, tile.position + its.row, tile.sequence.length);
            const u32 first = token + lane() % 4 * 2 - seen.start, count = seen.end - seen.start;
#pragma unroll
            for (u32 i = half * 2; i < COUNT; i += 4) {
                if (first + i * 2 - half * 4 >= count) s[i] = NOTHING;
                if (first + i * 2 - half * 4 + 1 >= count) s[i + 1] = NOTHING;
            }
        }
    }

    // Products become weights relative to the new reference, to be packed. What was summed so far has
    // to be multiplied by `less`; false where that is 1 in the whole warp. The whole warp comes.
    template <u32 COUNT>
    DEVICE bool weigh(float (&s)[COUNT], float (&less)[2]) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float most = NOTHING;
#pragma unroll
            for (u32 i = half * 2; i < COUNT; i += 4) most = fmaxf(most, fmaxf(s[i], s[i + 1]));
            most = fmaxf(most, shuffle_xor(most, 1));
            most = fmaxf(most, shuffle_xor(most, 2));
            const float next = fmaxf(top[half], ceilf(most * factor[half]));
            const float from = next == NOTHING ? 0.0f : next;
            less[half] = power_of_two(top[half] - from);
            top[half] = next;
            float sum = 0.0f;
#pragma unroll
            for (u32 i = half * 2; i < COUNT; i += 4) {
#pragma unroll
                for (u32 j = i; j < i + 2; j++) {
                    s[j] = power_of_two(fmaf(s[j], factor[half], In::LIFT - from));
                    sum += s[j];
                }
            }
            total[half] = fmaf(total[half], less[half], sum);
        }
        return any(less[0] != 1.0f || less[1] != 1.0f);
    }

    // Ends the sums; `to` gets what each row's sums have to be multiplied by. Rows m and m + 8.
    DEVICE void finish(const FlashParams& p, const FlashTile& tile, u32 m, float (&to)[2]) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float sum = total[i] + shuffle_xor(total[i], 1);
            sum += shuffle_xor(sum, 2);
            const MatrixRow its = matrix_row(p, tile, m + i * 8);
            float weight = 1.0f;
            if (p.sinks && its.there) {
                const float sink = p.sinks[tile.head + its.head] * LOG2_E;
                const float highest = fmaxf(top[i], sink);
                if (highest != NOTHING) {
                    weight = power_of_two(top[i] - highest);
                    sum = fmaf(sum, weight, power_of_two(sink - highest + In::LIFT));
                }
            }
            to[i] = sum == 0.0f ? 0.0f : weight / sum;
        }
    }

    // Weights of 16 tokens as the left side of a product.
    template <u32 COUNT>
    static DEVICE void pack(u32 (&a)[4], const float (&s)[COUNT], u32 step) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) a[i] = In::pack(s[step * 8 + i * 2], s[step * 8 + i * 2 + 1]);
    }
};

// ---- results

// Stores two elements, the first of which has an even column, of any form but FORM_INT8.
DEVICE void store_two(const Columns& to, u32 row, u32 col, float x, float y) {
    const size_t at = size_t(row) * to.stride + col;
    switch (to.form) {
    case FORM_F32:
        *reinterpret_cast<f32x2*>(static_cast<float*>(to.data) + at) = {x, y};
        break;
    case FORM_BF16:
        *reinterpret_cast<u32*>(static_cast<u16*>(to.data) + at) = pack_bf16(x, y);
        break;
    case FORM_F16:
        *reinterpret_cast<u32*>(static_cast<u16*>(to.data) + at) = pack_f16(x, y);
        break;
    case FORM_BF16X3: {
        u16* data = static_cast<u16*>(to.data) + size_t(row) * 3 * to.stride + col;
#pragma unroll
        for (u32 part = 0; part < 3; part++) {
            const u32 bits = pack_bf16(x, y);
            *reinterpret_cast<u32*>(data + size_t(part) * to.stride) = bits;
            x -= bits_float(bits << 16), y -= bits_float(bits & 0xffff0000u);
        }
        break;
    }
    default:
        break;
    }
}

// Stores a warp's 16 matrix rows, from m - lane / 4 on: `sums` are those of products [16, COLS], times
// what FlashSoftmax::finish says.
template <u32 COUNT>
DEVICE void store_sums(const FlashParams& p, const FlashTile& tile, u32 m, const float (&sums)[COUNT],
                       const float (&by)[2]) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const MatrixRow its = matrix_row(p, tile, m + half * 8);
        if (!its.there) continue;
        const u32 first = (tile.head + its.head) * p.kv.head_dim;
#pragma unroll
        for (u32 i = half * 2; i < COUNT; i += 4) {
            const u32 col = i / 4 * 8 + lane() % 4 * 2;
            // Heads end at a multiple of 8.
            if (i / 4 * 8 < p.kv.head_dim) {
                store_two(p.target, tile.row + its.row, first + col, sums[i] * by[half],
                          sums[i + 1] * by[half]);
            }
        }
    }
}

// Zeros from the last head to the stride: the share of one of `threads` threads.
DEVICE void store_rest(const FlashParams& p, const FlashTile& tile, u32 thread, u32 threads) {
    if (tile.head != 0) return;
    for (u32 row = 0; row < tile.rows; row++) {
        store_zeros(p.target, tile.row + row, p.heads * p.kv.head_dim, thread, threads);
    }
}
