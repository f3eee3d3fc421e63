// How a block of attention is cut, and how a warp streams its part of the cache through shared memory.
#pragma once
#include "cache_types.cuh"

// Pieces of keys and of values, alternating, that a warp's ring holds.
constexpr u32 SLOTS = 4;
constexpr u32 SLOT_LIMIT = 2048;

constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
constexpr u32 larger(u32 a, u32 b) { return a < b ? b : a; }

template <u32 WARPS_, u32 LANES_, u32 SIZE_, u32 HEADS_>
struct Shape {
    static constexpr u32 WARPS = WARPS_, LANES = LANES_, SIZE = SIZE_, HEADS = HEADS_;
    // Elements that a row has room for.
    static constexpr u32 DIM = LANES * SIZE;
    // Tokens side by side.
    static constexpr u32 GROUPS = 32 / LANES;
    static constexpr u32 UNIT = Cache::unit(SIZE);
    static constexpr u32 UNITS = SIZE / UNIT;
    static constexpr u32 UNIT_BYTES = UNIT * Cache::BYTES;
    // Tokens of a piece, and how many each group has of them.
    static constexpr u32 PIECE = smaller(16, SLOT_LIMIT / (DIM * Cache::BYTES));
    static constexpr u32 STEPS = PIECE / GROUPS;
    // Tokens of a group whose scores are reduced together.
    static constexpr u32 TOKENS = smaller(smaller(LANES / HEADS, 4), STEPS);
    static constexpr u32 ROUNDS = STEPS / TOKENS;
    static constexpr u32 SCORES = TOKENS * HEADS;
    // A slot: [STEPS][UNITS][32 lanes] units, then the scales as they lie in the cache.
    static constexpr u32 UNITS_BYTES = PIECE * DIM * Cache::BYTES;
    static constexpr u32 SLOT_BYTES =
        UNITS_BYTES + (Cache::SCALED ? PIECE * DIM / KV_SCALE_SPAN * 2 : 0);
    // Softmaxes of a block.
    static constexpr u32 PARTS = WARPS * GROUPS;
    static_assert(KV_BLOCK_TOKENS % PIECE == 0 && STEPS % TOKENS == 0 && SCORES <= LANES, "");
    static_assert(PARTS * HEADS <= WARPS * 32 && SLOT_BYTES % 16 == 0, "");
};

// The part of the cache that a warp reads, and its ring.
template <class S>
struct Stream {
    // Of the KV head, in the first block.
    const u8* keys;
    const u8* values;
    u8* ring;
    u32 row_bytes;
    u32 head_dim;
    // From a block of the cache to the next.
    u32 block_bytes;
    // Lane i holds the id of the split's block i.
    u32 block;
    // Tokens of the split that are seen; 0, 0 where there are none.
    u32 start, end;
    // The warp's first piece.
    u32 first;

    // Where a lane's unit starts in a row.
    static DEVICE u32 element(u32 unit) {
        return (unit * S::LANES + lane() % S::LANES) * S::UNIT;
    }

    DEVICE u32 piece(u32 half) const { return first + half / 2 * S::WARPS; }
    DEVICE bool is_there(u32 half) const { return piece(half) * S::PIECE < end; }

    DEVICE u8* slot(u32 half) const { return ring + half % SLOTS * S::SLOT_BYTES; }

    // Units beyond the head's end are never copied: zeros once and for all.
    DEVICE void clear() const {
        for (u32 at = lane() * 4; at < SLOTS * S::SLOT_BYTES; at += 32 * 4) {
            *reinterpret_cast<u32*>(ring + at) = 0;
        }
        sync_warp();
    }

    // Whether all tokens of a piece are seen.
    DEVICE bool is_whole(u32 token) const { return token >= start && token + S::PIECE <= end; }

    DEVICE bool is_seen(u32 token) const { return token - start < end - start; }

    // Starts copying a piece of keys or values. Tokens that are not seen are zeros, whatever the cache
    // holds there. The whole warp comes.
    DEVICE void fetch(u32 half) const {
        if (is_there(half)) {
            const u32 token = piece(half) * S::PIECE;
            const u8* from = half % 2 ? values : keys;
            from += size_t(shuffle(block, token / KV_BLOCK_TOKENS)) * block_bytes;
            copy_units(from, slot(half), token);
            if constexpr (Cache::SCALED) copy_scales(from, slot(half) + S::UNITS_BYTES, token);
        }
        commit_async();
    }

    DEVICE void copy_units(const u8* from, u8* to, u32 token) const {
        from += (token % KV_BLOCK_TOKENS + lane() / S::LANES) * row_bytes;
        from += element(0) * Cache::BYTES;
        to += lane() * S::UNIT_BYTES;
        const u32 stride = S::GROUPS * row_bytes;
        if (is_whole(token)) {
#pragma unroll
            for (u32 unit = 0; unit < S::UNITS; unit++) {
                if (element(unit) >= head_dim) continue;
#pragma unroll
                for (u32 step = 0; step < S::STEPS; step++) {
                    copy_unit(from + step * stride, to, step, unit);
                }
            }
            return;
        }
#pragma unroll 1
        for (u32 step = 0; step < S::STEPS; step++) {
            if (!is_seen(token + step * S::GROUPS + lane() / S::LANES)) {
                clear_step(to, step);
                continue;
            }
            for (u32 unit = 0; unit < S::UNITS; unit++) {
                if (element(unit) < head_dim) copy_unit(from + step * stride, to, step, unit);
            }
        }
    }

    DEVICE void copy_unit(const u8* from, u8* to, u32 step, u32 unit) const {
        to += (step * S::UNITS + unit) * 32 * S::UNIT_BYTES;
        from += unit * S::LANES * S::UNIT_BYTES;
        if constexpr (S::UNIT_BYTES == 16) {
            copy_async16(to, from);
        } else {
            copy_async8(to, from);
        }
    }

    DEVICE void clear_step(u8* to, u32 step) const {
        to += step * S::UNITS * 32 * S::UNIT_BYTES;
        for (u32 unit = 0; unit < S::UNITS; unit++) {
            for (u32 i = 0; i < S::UNIT_BYTES; i += 8) {
                *reinterpret_cast<u32x2*>(to + unit * 32 * S::UNIT_BYTES + i) = {0, 0};
            }
        }
    }

    DEVICE void copy_scales(const u8* from, u8* to, u32 token) const {
        const u32 scales = head_dim / KV_SCALE_SPAN;
        from += KV_BLOCK_TOKENS * head_dim + token % KV_BLOCK_TOKENS * scales * 2;
        if (is_whole(token)) {
            if (lane() < S::PIECE * scales * 2 / 16) {
                copy_async16(to + lane() * 16, from + lane() * 16);
            }
            return;
        }
#pragma unroll 1
        for (u32 i = 0; i < S::PIECE; i++) {
            const bool seen = is_seen(token + i);
            if (lane() < scales) {
                const u32 at = i * scales + lane();
                reinterpret_cast<u16*>(to)[at] = seen ? reinterpret_cast<const u16*>(from)[at] : 0;
            }
        }
    }

    // Waits for a piece. Scales were copied by other lanes.
    DEVICE void arrive() const {
        wait_async<SLOTS - 1>();
        if constexpr (Cache::SCALED) sync_warp();
    }

    // A unit of the group's token of a step, and its scale.
    DEVICE float load(float (&x)[S::UNIT], u32 half, u32 step, u32 unit) const {
        const u8* from = slot(half);
        Cache::load(x, from + ((step * S::UNITS + unit) * 32 + lane()) * S::UNIT_BYTES);
        if constexpr (!Cache::SCALED) return 1.0f;
        const u32 scales = head_dim / KV_SCALE_SPAN;
        const u32 token = step * S::GROUPS + lane() / S::LANES;
        const u32 at = token * scales + min(element(unit) / KV_SCALE_SPAN, scales - 1);
        return f16_value(reinterpret_cast<const u16*>(from + S::UNITS_BYTES)[at]);
    }

    // The slot is read: copies what comes next into it.
    DEVICE void leave(u32 half) const {
        if constexpr (Cache::SCALED) sync_warp();
        fetch(half + SLOTS);
    }
};
