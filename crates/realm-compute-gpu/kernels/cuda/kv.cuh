// The paged KV cache. A layer holds its keys, then its values, each as tiles `[block][kv_head]`. A tile is
// `[token][head_dim]` elements of the cache's type; with Q8_0 i8 `[token][head_dim]`, then f16 scales
// `[token][head_dim / 32]`. Twin of the structs in src/cuda/kv.rs.
#pragma once
#include "step.cuh"

// Tokens a block.
constexpr u32 KV_BLOCK_TOKENS = 64;

// Elements that share a scale in Q8_0.
constexpr u32 KV_SCALE_SPAN = 32;

enum KvKind : u32 { KV_KIND_F32 = 0, KV_KIND_F16 = 1, KV_KIND_BF16 = 2, KV_KIND_Q8_0 = 3 };

// One layer of the cache.
struct KvLayerView {
    u8* keys;
    u8* values;
    u32 kv_heads;
    u32 head_dim;
    u32 tile_bytes;
    u32 kind;
};

// Where a head's tile of a block starts, from the layer's first key or value.
DEVICE size_t tile_offset(const KvLayerView& kv, u32 block, u32 head) {
    return (size_t(block) * kv.kv_heads + head) * kv.tile_bytes;
}

// The block that holds a position of a sequence.
DEVICE u32 block_of(const StepView& step, const Sequence& sequence, u32 position) {
    return step.tables[sequence.table + position / KV_BLOCK_TOKENS];
}
