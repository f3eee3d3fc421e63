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
    KvLayerView kv;
    // [rows, heads · head_dim]
    const float* query;
    // [heads], or null.
    const float* sinks;
    // [rows of the pass, heads, splits, head_dim] sums, then [rows of the pass, heads, splits]
    // references and totals.
    float* partials;
    f32x2* stats;
    Columns target;
    u32 heads;
    // Query heads of a KV head, and into how many blocks they are cut.
    u32 group;
    u32 subsets;
    // First row of the pass.
    u32 first_row;
    u32 splits;
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
