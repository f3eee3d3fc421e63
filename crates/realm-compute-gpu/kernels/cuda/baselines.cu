// What the kernels of models are held against by `realm bench --claims` (src/cuda/bench/claims.rs): the
// same work done the plain way, as well as it can be, and what the tensor cores reach without memory. No
// model runs these.
#include "scales.cuh"
#include "step.cuh"

using Format = formats::FORMAT;
static_assert(Format::STAGE_TILES == 1, "a stage is a tile");

struct DequantizeParams {
    const u8* planes;
    // Planes of BF16: fragments as the tensor cores take them.
    u32x4* target;
    // Tiles of a row tile, and row tiles.
    u32 tiles;
    u32 row_tiles;
};

// Writes a weight as bf16. A warp takes a tile: 16 rows by 256 k.
KERNEL(dequantize, DequantizeParams, 128) {
    using Table = WeightScales<Format>;
    constexpr u32 CHUNKS = Format::TILE_K / 64;
    SHARED(float, tables, 4 * (Table::BYTES / 4));
    let_successor_start();
    wait_for_predecessor();
    const u32 row_tile = block_y() * 4 + warp();
    if (row_tile >= p.row_tiles) return;
    const size_t tile = size_t(row_tile) * p.tiles + block_x();
    const u8* planes = p.planes + tile * Format::TILE_BYTES;
    float* table = tables + warp() * (Table::BYTES / 4);
    Table::decode(table, planes, 1);
    sync_warp();
    u32x4* to = p.target + tile * (CHUNKS * 4 * 32) + lane();
#pragma unroll
    for (u32 at = 0; at < CHUNKS; at++) {
        const Format::Chunk chunk(planes + at * Format::Chunk::CHUNK_BYTES, lane());
        float low[Table::CHUNK], high[Table::CHUNK];
        const float* row = table + Table::ROW * (lane() / 4) + at * Table::CHUNK;
        load_floats(row, low);
        load_floats(row + 8 * Table::ROW, high);
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            u32 a[4];
            dequantized<Format, InBf16>(chunk, step, low, high, a);
            to[(at * 4 + step) * 32] = u32x4{a[0], a[1], a[2], a[3]};
        }
    }
}

struct SoftmaxParams {
    // Rows of `cols` scores as bf16, an even number; the probabilities take their place.
    u32* scores;
    u32 cols;
    float scale;
};

constexpr u32 SOFTMAX_THREADS = 256;

// The larger, or the sum, of all threads' values.
template <bool SUM>
DEVICE float block_reduce(float value, float* room) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        const float other = bits_float(shuffle_xor(float_bits(value), mask));
        value = SUM ? value + other : max(value, other);
    }
    sync_block();
    if (lane() == 0) room[warp()] = value;
    sync_block();
    value = room[0];
#pragma unroll
    for (u32 i = 1; i < SOFTMAX_THREADS / 32; i++) {
        value = SUM ? value + room[i] : max(value, room[i]);
    }
    return value;
}

// Causal softmax of a matrix of scores: row r sees columns 0 to r. A block takes a row.
KERNEL(softmax, SoftmaxParams, SOFTMAX_THREADS) {
    SHARED(float, room, SOFTMAX_THREADS / 32);
    let_successor_start();
    wait_for_predecessor();
    const u32 row = block_x(), seen = row + 1;
    u32* scores = p.scores + size_t(row) * (p.cols / 2);
    const float none = bits_float(0xff800000);
    const auto score = [&](u32 pair, u32 i) {
        const u32 bits = scores[pair];
        return 2 * pair + i < seen ? bf16_value(u16(i ? bits >> 16 : bits)) * p.scale : none;
    };
    float top = none;
    for (u32 at = thread_index(); 2 * at < seen; at += SOFTMAX_THREADS) {
        top = max(top, max(score(at, 0), score(at, 1)));
    }
    top = block_reduce<false>(top, room);
    float sum = 0.0f;
    for (u32 at = thread_index(); 2 * at < seen; at += SOFTMAX_THREADS) {
        sum += expf(score(at, 0) - top) + expf(score(at, 1) - top);
    }
    const float inverse = 1.0f / block_reduce<true>(sum, room);
    for (u32 at = thread_index(); at < p.cols / 2; at += SOFTMAX_THREADS) {
        const float low = expf(score(at, 0) - top), high = expf(score(at, 1) - top);
        scores[at] = pack_bf16(low * inverse, high * inverse);
    }
}

struct PeakParams {
    // A number a thread, so that nothing is left out.
    float* sink;
    u32 rounds;
    u32 unused;
};

constexpr u32 PEAK_THREADS = 256;

// Products of tensor cores by mma.sync, bf16 with f32 sums, from registers: eight a warp and round that
// do not wait for each other.
KERNEL(peak, PeakParams, PEAK_THREADS) {
    let_successor_start();
    wait_for_predecessor();
    const u32 one = pack_bf16(1.0f, 0.5f);
    const u32 a[4] = {one, one, one ^ lane(), one};
    float sums[8][4] = {};
#pragma unroll 1
    for (u32 round = 0; round < p.rounds; round++) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) mma_bf16(sums[i], a, one, one);
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    p.sink[block_x() * PEAK_THREADS + thread_index()] = sum;
}
