// How a warp streams its part of the cache through shared memory. A shape S says how: WARPS warps a block,
// pieces of PIECE tokens, rings of SLOTS slots of SLOT_BYTES; a slot has UNITS_BYTES of elements, then the
// scales as they lie in the cache. S::copy copies a piece's elements to where the warp looks for them.
#pragma once
#include "cache_types.cuh"

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

    DEVICE u32 piece(u32 half) const { return first + half / 2 * S::WARPS; }
    DEVICE bool is_there(u32 half) const { return piece(half) * S::PIECE < end; }

    DEVICE u8* slot(u32 half) const { return ring + half % S::SLOTS * S::SLOT_BYTES; }

    // Units beyond the head's end are never copied: zeros once and for all.
    DEVICE void clear() const {
        for (u32 at = lane() * 4; at < S::SLOTS * S::SLOT_BYTES; at += 32 * 4) {
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
            S::copy(*this, from, slot(half), token);
            if constexpr (Cache::SCALED) copy_scales(from, slot(half) + S::UNITS_BYTES, token);
        }
        commit_async();
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

    // Waits for a piece. Where lanes read what others copied, they wait for each other, too.
    DEVICE void arrive() const {
        wait_async<S::SLOTS - 1>();
        if constexpr (S::SHARES) sync_warp();
    }

    // The scale of a token of a piece, for the elements from `span` times KV_SCALE_SPAN on; any number
    // beyond the head's end.
    DEVICE float scale(u32 half, u32 token, u32 span) const {
        const u8* from = slot(half) + S::UNITS_BYTES + token * (head_dim / KV_SCALE_SPAN * 2);
        return f16_value(reinterpret_cast<const u16*>(from)[span]);
    }

    // The slot is read: copies what comes next into it.
    DEVICE void leave(u32 half) const {
        if constexpr (S::SHARES) sync_warp();
        fetch(half + S::SLOTS);
    }
};
