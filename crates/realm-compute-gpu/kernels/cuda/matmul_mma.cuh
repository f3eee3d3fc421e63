// Products of many rows with mma.sync, for devices without wgmma.
//
// A block has four warps, each with two of its row tiles (gated: the same tile of both weights) and
// all N rows of activations: so a weight is decoded once, and what a warp loads of the activations
// serves 32 weight rows. A ring in shared memory has stages of 64 k: the planes' chunks, which only
// the warp that copied them reads, and the activations, [N rows][64], the 16-byte units of a row
// turned by its number, so that the same unit of eight rows lies in different banks.
#pragma once
#include "matmul.cuh"

constexpr u32 MMA_THREADS = 128;

template <class F, class In, u32 N>
struct MmaRun {
    using Table = WeightScales<F>;
    static constexpr u32 TILES = 2;
    // Chunks of a tile; stages whose scales are decoded together.
    static constexpr u32 CHUNKS = F::TILE_K / 64;
    // A row tile's part of a stage: a chunk or, where it has no more, the tile. And what comes with a
    // tile's first chunk: its headers. There is one place for them, for until the next ones come,
    // fewer than CHUNKS stages later, they are decoded.
    static constexpr u32 PLANES = CHUNKS == 1 ? F::TILE_BYTES : F::Chunk::CHUNK_BYTES;
    static constexpr u32 HEADER = CHUNKS == 1 ? 0 : F::TILE_BYTES - CHUNKS * PLANES;
    // Floats of a row of the table of a row tile.
    static constexpr u32 ROW = CHUNKS == 1 ? Table::CHUNK : 4 * Table::CHUNK + 4;
    static constexpr u32 TABLE = F::FLOAT ? 0 : 16 * ROW * 4;
    static constexpr u32 ACTIVATIONS = 128 * N;
    static constexpr u32 STAGE = ACTIVATIONS + BLOCK_TILES * PLANES;
    // src/cuda/kernels/matmul.rs knows these numbers, too.
    static constexpr u32 STAGES = F::FLOAT ? (PLANES > 2048 || N == 128 ? 2 : 3) : N == 128 ? 3 : 4;
    static_assert(CHUNKS == 1 || STAGES <= CHUNKS, "headers have one place");

    const MatmulParams& p;
    // Rows of activations.
    const u32 rows;
    // Where the next stages of the warp's row tiles lie, and the thread's unit of the first row.
    const u8* planes[TILES];
    const u8* input;
    float sums[TILES][N / 8][4];

    DEVICE MmaRun(const MatmulParams& params, const MatmulPlace& place)
        : p(params), rows(place.rows), sums{} {
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            planes[t] = row_tile<F>(p, place, tile(p, t)) + 16 * lane() +
                        place.first_stage * F::STAGE_TILES * F::TILE_BYTES;
        }
        const u32 row = place.first_row + thread_index() / 8;
        input = static_cast<const u8*>(p.input.data) + row * row_bytes() +
                place.first_stage * STAGE_K<F> * 2 + 16 * (thread_index() % 8);
    }

    // The warp's row tiles of the block.
    static DEVICE u32 tile(const MatmulParams& p, u32 t) {
        return p.activation ? warp() + BLOCK_TILES / 2 * t : TILES * warp() + t;
    }

    static DEVICE u8* headers() {
        return dynamic_shared() + STAGES * STAGE + TILES * warp() * HEADER;
    }
    static DEVICE float* table() {
        return reinterpret_cast<float*>(dynamic_shared() + STAGES * STAGE + BLOCK_TILES * HEADER +
                                        TILES * warp() * TABLE);
    }
    // Where in a slot the lane finds its row of a matrix of the first step's activations.
    static DEVICE u32 operand() {
        return 128 * (lane() / 16 * 8 + lane() % 8) + 16 * (lane() / 8 % 2 ^ lane() % 8);
    }

    DEVICE size_t row_bytes() const { return 2 * size_t(p.input.stride); }

    // Copies BYTES of a row tile; `from` is the lane's part.
    template <u32 BYTES>
    static DEVICE void copy_tile(u8* to, const u8* from) {
#pragma unroll
        for (u32 at = 0; at < BYTES; at += 512) {
            if (at + 512 <= BYTES || 16 * lane() + at < BYTES) {
                copy_async16(to + at + 16 * lane(), from + at);
            }
        }
    }

    // Where a tile's planes of the stage begin in the slot.
    DEVICE static u8* planes_of(u8* slot, u32 t) {
        return slot + ACTIVATIONS + (2 * warp() + t) * PLANES;
    }

    // Weights of a stage, the next.
    DEVICE void copy_planes(u8* slot, u32 stage) {
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            copy_tile<PLANES>(planes_of(slot, t), planes[t]);
            if constexpr (HEADER != 0) {
                if (stage % CHUNKS == 0) {
                    copy_tile<HEADER>(headers() + t * HEADER, planes[t] + CHUNKS * PLANES);
                }
                if (stage % CHUNKS == CHUNKS - 1) planes[t] += HEADER;
            }
            planes[t] += PLANES;
        }
    }

    // Activations of the next stage. Rows that are not there stay what they are: their sums are not
    // stored.
    DEVICE void copy_activations(u8* slot) {
        const u32 unit = thread_index() % 8, first = thread_index() / 8;
        u8* to = slot + 128 * first + 16 * (unit ^ first % 8);
        const u8* row = input;
#pragma unroll
        for (u32 i = 0; i < N / 16; i++, row += 16 * row_bytes()) {
            if (first + 16 * i < rows) copy_async16(to + 2048 * i, row);
        }
        input += 128;
    }

    DEVICE void copy(u8* slot, u32 stage) {
        copy_planes(slot, stage);
        copy_activations(slot);
    }

    // The warp's tables of a stage's scales and, where a tile is longer, of the ones after it.
    DEVICE void decode(u8* from) {
        if constexpr (CHUNKS == 1) {
            // A lane a row of either tile.
            const u32 row = lane() % 16;
            float scale[2], min[2], values[Table::CHUNK];
            F::pair(planes_of(from, lane() / 16), row, 0, scale, min);
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                values[j * Table::WIDTH] = scale[j];
                if constexpr (F::HAS_MIN) {
                    values[j * Table::WIDTH + 1] = sum_factor<F, InBf16>(scale[j], min[j]);
                }
            }
            store_floats(table() + lane() * ROW, values);
        } else {
#pragma unroll 1
            for (u32 t = 0; t < TILES; t++) {
                Table::decode(table() + t * (TABLE / 4), headers() + t * HEADER - CHUNKS * PLANES, 1);
            }
        }
        sync_warp();
    }

    // Adds the products of a stage.
    DEVICE void add_stage(u8* from, u32 at) {
        if constexpr (!F::FLOAT) {
            if (at % CHUNKS == 0) decode(from);
        }
        const typename F::Chunk chunks[TILES] = {{planes_of(from, 0), lane()},
                                                 {planes_of(from, 1), lane()}};
        const float* scales = table() + ROW * (lane() / 4) + at % CHUNKS * Table::CHUNK;
        // The next step is decoded while this one's products are under way.
        u32 a[2][TILES][4];
        fragments(chunks, scales, 0, a[0]);
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            if (step < 3) fragments(chunks, scales, step + 1, a[(step + 1) % 2]);
            const u8* row = from + (operand() ^ 32 * step);
            u32 b[2][4];
            load_matrix_x4(b[0], row);
#pragma unroll
            for (u32 j = 0; j < N / 16; j++) {
                if (j + 1 < N / 16) load_matrix_x4(b[(j + 1) % 2], row + 2048 * (j + 1));
                const u32 (&columns)[4] = b[j % 2];
#pragma unroll
                for (u32 t = 0; t < TILES; t++) {
                    In::mma(sums[t][2 * j], a[step % 2][t], columns[0], columns[1]);
                    In::mma(sums[t][2 * j + 1], a[step % 2][t], columns[2], columns[3]);
                }
            }
            // So that the assembler loads no further ahead than it has registers for.
            sync_warp();
        }
    }

    // `scales` are those of the chunk in the first tile's table.
    static DEVICE void fragments(const typename F::Chunk (&chunks)[TILES], const float* scales,
                                 u32 step, u32 (&a)[TILES][4]) {
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            float low[Table::WIDTH] = {}, high[Table::WIDTH] = {};
            if constexpr (!F::FLOAT) {
                const float* row = scales + t * (TABLE / 4) + 16 * step / F::GROUP * Table::WIDTH;
                load_floats(row, low);
                load_floats(row + 8 * ROW, high);
            }
            dequantized_group<F, In>(chunks[t], step, low, high, a[t]);
        }
    }
};

// A block's work.
template <class F, class In, u32 N>
DEVICE void matmul_mma(const MatmulParams& p) {
    using Run = MmaRun<F, In, N>;
    constexpr u32 RING = Run::STAGES * Run::STAGE;
    const MatmulPlace place = find_place<F, N>(p);
    let_successor_start();
    wait_for_predecessor();
    if (place.rows == 0) return;
    Run run(p, place);
    u8* const ring = dynamic_shared();
    u32 stage = place.first_stage * (STAGE_K<F> / 64);
    const u32 stages = (p.k + F::TILE_K - 1) / F::TILE_K * Run::CHUNKS;
    const u32 last = min(place.end_stage * (STAGE_K<F> / 64), stages);
    // A group of copies a stage, also where there is none.
#pragma unroll
    for (u32 i = 0; i + 1 < Run::STAGES; i++) {
        if (stage + i < last) run.copy(ring + i * Run::STAGE, stage + i);
        commit_async();
    }
    // The slot that was read last is filled while the next one is read.
    u32 free = RING - Run::STAGE;
#pragma unroll 1
    for (; stage < last; stage++) {
        wait_async<Run::STAGES - 2>();
        sync_block();
        const u32 ahead = stage + Run::STAGES - 1;
        if (ahead < last) run.copy(ring + free, ahead);
        commit_async();
        free = free + Run::STAGE == RING ? 0 : free + Run::STAGE;
        run.add_stage(ring + free, stage);
    }
    // Found again, which is cheaper than to keep it in registers.
    const MatmulPlace end = find_place<F, N>(p);
    const u32 tiles[Run::TILES] = {Run::tile(p, 0), Run::tile(p, 1)};
    finish_block<N, Run::TILES, WholeBlock>(p, end, tiles, run.sums,
                                            reinterpret_cast<float*>(ring));
}
