// Mixtures of experts: the choice of a row's experts, the order of slots by expert for products of many
// rows, and the sum of what the chosen experts say. A row's slots lie side by side, the best first.
#include "elementwise.cuh"

// Threads of a row's choice.
constexpr u32 ROUTE_THREADS = 128;

struct RouteParams {
    // [rows, all].
    const float* logits;
    const u32* count;
    // [rows, used].
    u32* experts;
    float* weights;
    // Experts, and those that a row takes.
    u32 all;
    u32 used;
    // Whether a row's weights are those of a softmax over the chosen; else over all.
    u32 normalized;
    u32 unused;
};

// A number that is larger where a logit is: zeros are alike, what is no number comes last.
DEVICE u32 rank_key(float logit) {
    if (logit != logit) return 0;
    const u32 bits = float_bits(logit + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A block chooses for a row: an expert's place is the number of those that come before it.
KERNEL(route, RouteParams, ROUTE_THREADS) {
    SHARED(float, partial, ROUTE_THREADS / 32);
    u32 row;
    if (!begin(p.count, row)) return;
    const float* logits = p.logits + size_t(row) * p.all;
    // Padded to a multiple of four with what is never before another; then the logits of the chosen.
    const u32 padded = (p.all + 3) / 4 * 4;
    u32* keys = reinterpret_cast<u32*>(dynamic_shared());
    float* chosen = reinterpret_cast<float*>(keys + padded);
    for (u32 i = thread_index(); i < padded; i += ROUTE_THREADS) {
        keys[i] = i < p.all ? rank_key(logits[i]) : 0;
    }
    sync_block();
    for (u32 i = thread_index(); i < p.all; i += ROUTE_THREADS) {
        const u32 key = keys[i];
        u32 place = 0;
        for (u32 j = 0; j < padded; j += 4) {
            const u32x4 others = *reinterpret_cast<const u32x4*>(keys + j);
            // Of those alike, the ones with lower numbers.
            place += others.x > key || (others.x == key && j < i);
            place += others.y > key || (others.y == key && j + 1 < i);
            place += others.z > key || (others.z == key && j + 2 < i);
            place += others.w > key || (others.w == key && j + 3 < i);
        }
        if (place < p.used) {
            p.experts[size_t(row) * p.used + place] = i;
            chosen[place] = logits[i];
        }
    }
    sync_block();
    const float most = chosen[0];
    float total = 0.0f;
    if (p.normalized) {
        for (u32 slot = 0; slot < p.used; slot++) total += expf(chosen[slot] - most);
    } else {
        for (u32 i = thread_index(); i < p.all; i += ROUTE_THREADS) total += expf(logits[i] - most);
        total = team_sum<ROUTE_THREADS>(total, partial);
    }
    for (u32 slot = thread_index(); slot < p.used; slot += ROUTE_THREADS) {
        p.weights[size_t(row) * p.used + slot] = expf(chosen[slot] - most) / total;
    }
}

// Threads that collect an expert's slots.
constexpr u32 GROUP_THREADS = 1024;
constexpr u32 GROUP_WARPS = GROUP_THREADS / 32;

struct GroupParams {
    // [rows, used].
    const u32* experts;
    // The rows are those from *first, or 0, to *end. Written before the step begins.
    const u32* first;
    const u32* end;
    // Where each expert's slots start in `order`, and where the last one's end.
    u32* starts;
    // Slots by expert, those of one as they come: a slot is used · row + its place in the row.
    u32* order;
    u32 used;
    u32 unused;
};

DEVICE u32 warp_total(u32 value) {
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// How many bits are set.
DEVICE u32 ones(u32 bits) {
    bits -= bits >> 1 & 0x55555555;
    bits = (bits & 0x33333333) + (bits >> 2 & 0x33333333);
    return ((bits + (bits >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
}

// A block collects the slots of an expert. Each warp has a part of the slots, one after another: it
// counts those of this expert and of those before, then puts its own behind those of the warps before.
KERNEL(group, GroupParams, GROUP_THREADS) {
    SHARED(u32, own_counts, GROUP_WARPS);
    SHARED(u32, other_counts, GROUP_WARPS);
    let_successor_start();
    const u32 first = (p.first ? *p.first : 0) * p.used, end = *p.end * p.used;
    wait_for_predecessor();
    const u32 expert = block_x(), slots = first < end ? end - first : 0;
    const u32 part = (slots + GROUP_THREADS - 1) / GROUP_THREADS * 32;
    const u32 from = min(first + warp() * part, end), to = min(from + part, end);
    u32 own = 0, others = 0;
    for (u32 slot = from + lane(); slot < to; slot += 32) {
        const u32 chosen = p.experts[slot];
        own += chosen == expert;
        others += chosen < expert;
    }
    own = warp_total(own), others = warp_total(others);
    if (lane() == 0) own_counts[warp()] = own, other_counts[warp()] = others;
    sync_block();
    u32 start = 0, count = 0, before = 0;
    for (u32 i = 0; i < GROUP_WARPS; i++) {
        start += other_counts[i];
        count += own_counts[i];
        if (i < warp()) before += own_counts[i];
    }
    if (thread_index() == 0) {
        p.starts[expert] = start;
        if (expert + 1 == grid_x()) p.starts[expert + 1] = start + count;
    }
    u32* order = p.order + start + before;
    for (u32 base = from; base < to; base += 32) {
        const u32 slot = base + lane();
        const bool mine = slot < to && p.experts[slot] == expert;
        const u32 lanes = ballot(mine);
        if (mine) order[ones(lanes & ((1u << lane()) - 1))] = slot;
        order += ones(lanes);
    }
}

// Threads that copy a row.
constexpr u32 COPY_THREADS = 128;

struct GatherParams {
    // Rows of `units` times 16 bytes.
    const u32x4* input;
    u32x4* output;
    // The rows' slots are those of GroupParams, ordered by `order`.
    const u32* first;
    const u32* end;
    const u32* order;
    u32 used;
    // Slots that share a row of the input.
    u32 input_slots;
    u32 units;
    u32 unused;
};

// Rows of a product's input, in the order of their slots.
KERNEL(gather, GatherParams, COPY_THREADS) {
    let_successor_start();
    const u32 first = p.first ? *p.first : 0, end = *p.end;
    wait_for_predecessor();
    if (first >= end || block_x() >= (end - first) * p.used) return;
    const u32x4* from = p.input + size_t(p.order[block_x()] / p.input_slots) * p.units;
    u32x4* to = p.output + size_t(block_x()) * p.units;
    for (u32 i = thread_index(); i < p.units; i += COPY_THREADS) to[i] = from[i];
}

struct SumParams {
    // The input has `used` times as many columns.
    Map map;
    // [rows, used].
    const float* weights;
    u32 used;
    u32 unused;
};

// The sum of a row's slots, each times its weight, in order.
KERNEL(sum, SumParams, THREADS) {
    u32 row;
    if (!begin(p.map.count, row)) return;
    const float* slots = p.map.input + size_t(row) * p.used * p.map.cols;
    const float* weights = p.weights + size_t(row) * p.used;
    store_share(p.map, row, [&](auto pack, u32 col) {
        constexpr int WIDTH = decltype(pack)::width;
        Pack<WIDTH> sum{};
        for (u32 slot = 0; slot < p.used; slot++) {
            const Pack<WIDTH> x = load<WIDTH>(slots + size_t(slot) * p.map.cols, col);
            const float weight = weights[slot];
            for (int e = 0; e < WIDTH; e++) sum.v[e] = fmaf(weight, x.v[e], sum.v[e]);
        }
        return sum;
    });
}
