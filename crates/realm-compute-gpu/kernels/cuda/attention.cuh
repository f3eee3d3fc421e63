// What the attention kernels share: their parameters, which tokens a row sees, how shares of a softmax
// with different references are put together. Twin of the structs in src/cuda/kernels/attention.rs.
#pragma once
#include "kv.cuh"

// A sequence is cut at multiples of this many tokens, whatever its length: each part is summed by one
// block, and the parts are added in order.
constexpr u32 SPLIT = 256;

constexpr u32 NO_WINDOW = 0xffffffffu;

struct AttentionParams {
    StepView step;
    // How many rows there are, the step's first ones.
    const u32* count;
    KvLayerView kv;
    // [rows, heads · head_dim]
    const float* query;
    // [heads], or null.
    const float* sinks;
    // [heads, units, head_dim] sums, then [heads, units] references and totals. A unit is a split of a
    // row of the pass.
    float* partials;
    f32x2* stats;
    Columns target;
    u32 heads;
    // Query heads of a KV head, and into how many blocks they are cut.
    u32 group;
    u32 subsets;
    // First row of the pass.
    u32 first_row;
    // Each row has so many units; or, where this is 0, as many as it sees splits, without gaps: then
    // the pass has all rows.
    u32 splits;
    u32 units;
    u32 causal;
    u32 window;
    // The rows have one split at most: its block stores the result.
    u32 direct;
    float scale;
    // 0 where there is none.
    float soft_cap;
};

// The positions [start, end) that a row sees.
struct Visible {
    u32 start, end;
};

DEVICE Visible visible(const AttentionParams& p, const Row& row, const Sequence& sequence) {
    const u32 next = row.position + 1;
    const u32 end = p.causal && next < sequence.length ? next : sequence.length;
    const u32 start = p.window < next ? next - p.window : 0;
    return {start < end ? start : end, end};
}

DEVICE u32 splits_of(const Visible& seen) {
    return seen.start < seen.end ? (seen.end - 1) / SPLIT - seen.start / SPLIT + 1 : 0;
}

// A unit's row in the pass, and its number among the row's.
struct Unit {
    u32 slot, split;
};

// Splits that the row `slot` of a pass of all rows sees.
DEVICE u32 splits_of_row(const AttentionParams& p, u32 slot, u32 rows) {
    if (slot >= rows) return 0;
    const Row row = p.step.rows[slot];
    return splits_of(visible(p, row, p.step.sequences[row.sequence]));
}

// Finds a unit of a pass without gaps, warp by warp. Beyond the last one `slot` is not less than the
// step's rows.
DEVICE Unit find_unit(const AttentionParams& p, u32 unit) {
    const u32 rows = *p.count;
    for (u32 first = 0; first < rows; first += 32) {
        u32 sum = splits_of_row(p, first + lane(), rows);
#pragma unroll
        for (u32 span = 1; span < 32; span *= 2) {
            const u32 before = shuffle(sum, lane() - min(lane(), span));
            if (lane() >= span) sum += before;
        }
        const u32 all_of_them = shuffle(sum, 31);
        if (unit < all_of_them) {
            // How many rows end at or before the unit.
            u32 at = 0;
#pragma unroll
            for (u32 step = 16; step > 0; step /= 2) {
                if (shuffle(sum, at + step - 1) <= unit) at += step;
            }
            const u32 start = shuffle(sum, at - min(at, 1u));
            return {first + at, at > 0 ? unit - start : unit};
        }
        unit -= all_of_them;
    }
    return {rows, 0};
}

// The first unit of a row of the pass.
DEVICE u32 first_unit(const AttentionParams& p, u32 slot) {
    if (p.splits > 0) return slot * p.splits;
    u32 sum = 0;
    for (u32 before = lane(); before < slot; before += 32) sum += splits_of_row(p, before, slot);
#pragma unroll
    for (u32 bit = 1; bit < 32; bit *= 2) sum += shuffle_xor(sum, bit);
    return sum;
}

constexpr float NOTHING = -__builtin_huge_valf();

// What a sum whose scores were taken relative to `reference` counts relative to `top`, which is not less.
// Where nothing was summed, the reference is -infinity.
DEVICE float weight_of(float reference, float top) {
    return reference == NOTHING ? 0.0f : expf(reference - top);
}

DEVICE float sink_of(const AttentionParams& p, u32 head) {
    return p.sinks ? p.sinks[head] : NOTHING;
}

DEVICE void add_scaled(f32x4& sum, float factor, const f32x4& v) {
    sum.x = fmaf(factor, v.x, sum.x);
    sum.y = fmaf(factor, v.y, sum.y);
    sum.z = fmaf(factor, v.z, sum.z);
    sum.w = fmaf(factor, v.w, sum.w);
}

// Stores four elements of a result: the sums over the total, 0 where no token was seen.
DEVICE void store_quotient(const Columns& to, u32 row, u32 col, const f32x4& sum, float total) {
    const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) store(to, row, col + i, total == 0.0f ? 0.0f : sums[i] / total);
}
