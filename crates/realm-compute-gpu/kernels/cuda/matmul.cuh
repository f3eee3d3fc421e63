// What all products of many rows share: their parameters, where a block works, and its end.
//
// The weight is the left matrix: a block has 128 weight rows, eight row tiles of planes, and N rows
// of activations. A warp decodes its tiles to fragments of f32 rounded once to what the activations
// are (scales.cuh), and sums products in f32. Every element sums its k in one order, whatever rows
// there are besides its own.
#pragma once
#include "activation.cuh"
#include "scales.cuh"
#include "step.cuh"

// Row tiles of a block, and its weight rows.
constexpr u32 BLOCK_TILES = 8;
constexpr u32 BLOCK_ROWS = 16 * BLOCK_TILES;

// PER_BLOCK: what is done once a block, and in all kernels alike. The emulated device has one copy of
// it for all kernels of a unit, which halves the time to compile them.
//
// fence_device() orders the thread's accesses to memory before it with those after it, for all of the
// device.
#ifdef REALM_EMULATED
#define PER_BLOCK [[gnu::noinline]] inline
DEVICE void fence_device() {}
#else
#define PER_BLOCK DEVICE
DEVICE void fence_device() { __threadfence(); }
#endif

// One weight and where its product goes.
struct MatmulSegment {
    const u8* planes;
    // An f32 a weight row, or null.
    const float* bias;
    Columns target;
    // Row tiles of all experts together; rows of one (those of its last tile may be fewer, and its
    // first may begin in a tile of the one before), and blocks.
    u32 tiles;
    u32 n;
    u32 blocks;
    u32 unused;
};

// The grid: groups of N rows, blocks of weight rows (the segments', one after another), splits of k.
struct MatmulParams {
    // The input's rows: boxes of 64 columns and N rows.
    TensorMap map;
    Columns input;
    // The rows are those from *first, or 0, to *end. Written before the step begins.
    const u32* first;
    const u32* end;
    // Where the rows of each expert start, and where the last's end; or null. Written by the step.
    const u32* starts;
    // The target's row of each row of the input; or null, where it is the same.
    const u32* order;
    // Of each block and split, 128 x N sums; a counter a block, zero between launches.
    float* partials;
    u32* counters;
    u32 k;
    u32 experts;
    // 0: segments, one after another. Otherwise one target, activation(first) · second; a block then
    // has four row tiles of each.
    u32 activation;
    // Splits of k, and stages of each: the last may have fewer.
    u32 splits;
    u32 split_stages;
    u32 unused;
    MatmulSegment segments[4];
};

// The k of a stage: what WeightScales::decode decodes at once.
template <class F>
constexpr u32 STAGE_K = F::STAGE_TILES * F::TILE_K;

// Where a block works.
struct MatmulPlace {
    // Its segment (gated: 0), and which of its blocks it is.
    u32 segment;
    u32 block;
    // Its rows of the input: the first, and how many there are, 0 where the block has nothing to do.
    u32 first_row;
    u32 rows;
    u32 expert;
    // Its stages of k: of STAGE_K each.
    u32 first_stage;
    u32 end_stage;

    // Rows of the block's first tile that are another expert's, where it is the expert's first.
    DEVICE u32 shift(const MatmulSegment& segment) const { return expert * segment.n % 16; }

    // The number of row tiles of the block's share of a weight.
    static DEVICE u32 share(const MatmulParams& p) {
        return p.activation ? BLOCK_TILES / 2 : BLOCK_TILES;
    }
};

// The block's expert, and its group of N rows among the expert's. The whole warp calls it, after
// wait_for_predecessor(): an expert's rows make groups of their own.
template <u32 N>
DEVICE void find_expert(const MatmulParams& p, MatmulPlace& place) {
    u32 before = 0;
    place.rows = 0;
    for (u32 base = 0; base < p.experts; base += 32) {
        const u32 expert = base + lane();
        const u32 start = expert < p.experts ? p.starts[expert] : 0;
        const u32 rows = expert < p.experts ? p.starts[expert + 1] - start : 0;
        const u32 groups = (rows + N - 1) / N;
        // Groups up to this lane's expert, its own included.
        u32 sum = groups;
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            const u32 other = shuffle(sum, lane() >= step ? lane() - step : lane());
            if (lane() >= step) sum += other;
        }
        const u32 group = block_x() - before;
        const u32 found = ballot(group < sum);
        if (found != 0) {
            u32 from = 0;
            while (!(found >> from & 1)) from++;
            const u32 skipped = (group - shuffle(sum - groups, from)) * N;
            place.expert = base + from;
            place.first_row = shuffle(start, from) + skipped;
            place.rows = min(shuffle(rows, from) - skipped, N);
            return;
        }
        before += shuffle(sum, 31);
    }
}

// Where this block works. Where rows belong to experts, it waits for the predecessor.
template <class F, u32 N>
PER_BLOCK MatmulPlace find_place(const MatmulParams& p) {
    MatmulPlace place{};
    place.block = block_y();
    if (p.activation == 0) {
        while (place.block >= p.segments[place.segment].blocks) {
            place.block -= p.segments[place.segment++].blocks;
        }
    }
    if (p.starts) {
        wait_for_predecessor();
        find_expert<N>(p, place);
    } else {
        place.first_row = (p.first ? *p.first : 0) + block_x() * N;
        const u32 end = *p.end;
        place.rows = place.first_row < end ? min(end - place.first_row, N) : 0;
    }
    const u32 stages = (p.k + STAGE_K<F> - 1) / STAGE_K<F>;
    place.first_stage = min(block_z() * p.split_stages, stages);
    place.end_stage = min(place.first_stage + p.split_stages, stages);
    return place;
}

// The planes of the block's row tile i of eight: of the segment or, where the product is gated, of
// the gate for the first four, of up for the others. What lies beyond a weight's last tile is
// another of its tiles, for whose rows nothing is stored.
template <class F>
DEVICE const u8* row_tile(const MatmulParams& p, const MatmulPlace& place, u32 i) {
    const u32 share = MatmulPlace::share(p);
    const MatmulSegment& segment = p.segments[i < share ? place.segment : 1];
    const u32 first = place.expert * segment.n / 16 + place.block * share;
    const u32 bytes = (p.k + F::TILE_K - 1) / F::TILE_K * F::TILE_BYTES;
    return segment.planes + size_t(min(first + i % share, segment.tiles - 1)) * bytes;
}

// Four elements of a row of `cols`, from `col` on: those that the row has.
DEVICE void store_four(const Columns& to, u32 row, i32 col, u32 cols, const float (&value)[4]) {
    const bool whole = col >= 0 && col % 4 == 0 && u32(col) + 4 <= cols;
    if (!whole || (to.form == FORM_F32 && to.stride % 4 != 0)) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            // What is below 0 is above all as u32.
            if (u32(col) + i < cols) store(to, row, u32(col) + i, value[i]);
        }
        return;
    }
    const size_t at = size_t(row) * to.stride + u32(col);
    u16* half = static_cast<u16*>(to.data) + at;
    switch (to.form) {
    case FORM_F32:
        *reinterpret_cast<f32x4*>(static_cast<float*>(to.data) + at) =
            f32x4{value[0], value[1], value[2], value[3]};
        break;
    case FORM_BF16:
        *reinterpret_cast<u32x2*>(half) =
            u32x2{pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3])};
        break;
    case FORM_F16:
        *reinterpret_cast<u32x2*>(half) =
            u32x2{pack_f16(value[0], value[1]), pack_f16(value[2], value[3])};
        break;
    default:
#pragma unroll
        for (u32 i = 0; i < 4; i++) store(to, row, u32(col) + i, value[i]);
        break;
    }
}

// What finish() asks of a block: `threads` threads of numbers `thread` and a barrier for them.
struct WholeBlock {
    static DEVICE u32 thread() { return thread_index(); }
    static DEVICE u32 threads() { return thread_count(); }
    static DEVICE void sync() { sync_block(); }
};

// Adds up the splits of k. Each block stores its sums; the last one to come adds all, in order, to
// `sums`, and returns true.
template <u32 N, u32 TILES, class Block>
PER_BLOCK bool add_splits(const MatmulParams& p, const u32 (&tiles)[TILES],
                       float (&sums)[TILES][N / 8][4], u32* flag) {
    const size_t block = size_t(block_y()) * grid_x() + block_x();
    // A fragment of 8 columns is 128 floats.
    constexpr u32 SPLIT = BLOCK_ROWS * N;
    float* partials = p.partials + block * p.splits * SPLIT + 4 * lane();
    float* own = partials + block_z() * SPLIT;
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 j = 0; j < N / 8; j++) {
            store_floats(own + (tiles[t] * (N / 8) + j) * 128, sums[t][j]);
        }
    }
    fence_device();
    Block::sync();
    if (Block::thread() == 0) *flag = atomic_add(p.counters + block, 1);
    Block::sync();
    if (*flag + 1 < p.splits) return false;
    fence_device();
    if (Block::thread() == 0) p.counters[block] = 0;
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 j = 0; j < N / 8; j++) {
            const float* from = partials + (tiles[t] * (N / 8) + j) * 128;
            load_floats(from, sums[t][j]);
#pragma unroll 1
            for (u32 split = 1; split < p.splits; split++) {
                float more[4];
                load_floats(from + split * SPLIT, more);
#pragma unroll
                for (u32 i = 0; i < 4; i++) sums[t][j][i] += more[i];
            }
        }
    }
    return true;
}

// Rows of the input whose sums lie in shared memory at a time; floats from one to the next, so that
// a warp's stores go to different banks; and the bytes that finish() needs.
constexpr u32 PIECE = 32;
constexpr u32 PIECE_PITCH = BLOCK_ROWS + 4;
constexpr u32 FINISH_BYTES = PIECE * PIECE_PITCH * 4;

// The target's row of the block's row.
DEVICE u32 target_row(const MatmulParams& p, const MatmulPlace& place, u32 row) {
    return p.order ? p.order[place.first_row + row] : place.first_row + row;
}

// Stores rows `from` and on of a block, at most PIECE, whose sums lie at `room`.
template <class Block>
PER_BLOCK void store_piece(const MatmulParams& p, const MatmulPlace& place, u32 from,
                        const float* room) {
    const MatmulSegment& segment = p.segments[place.segment];
    const u32 rows = min(place.rows - from, PIECE), columns = 16 * MatmulPlace::share(p);
    const u32 first = place.block * columns, fours = columns / 4;
    const float* gate_bias = segment.bias ? segment.bias + place.expert * segment.n : nullptr;
    const MatmulSegment& second = p.segments[1];
    const float* up_bias =
        p.activation && second.bias ? second.bias + place.expert * segment.n : nullptr;
    // A thread keeps its columns.
    const u32 at = Block::thread() % fours * 4;
    const i32 n = i32(first + at) - i32(place.shift(segment));
    if (n >= i32(segment.n)) return;
    float bias[4] = {}, more_bias[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 column = u32(n) + i;
        if (gate_bias && column < segment.n) bias[i] = gate_bias[column];
        if (up_bias && column < segment.n) more_bias[i] = up_bias[column];
    }
    for (u32 row = Block::thread() / fours; row < rows; row += Block::threads() / fours) {
        const float* sums = room + row * PIECE_PITCH + at;
        float value[4];
        load_floats(sums, value);
#pragma unroll
        for (u32 i = 0; i < 4; i++) value[i] += bias[i];
        if (p.activation) {
            float factor[4];
            load_floats(sums + BLOCK_ROWS / 2, factor);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                value[i] = activate(p.activation, value[i]) * (factor[i] + more_bias[i]);
            }
        }
        store_four(segment.target, target_row(p, place, from + row), n, segment.n, value);
    }
}

// The block's end: splits, bias, activation, the product to its target, zeros up to the stride.
//
// The threads of Block, whole warps, have for each of TILES row tiles of the block, `tiles` (gated:
// those of the gate are 0 to 3, of up 4 to 7), sums [activation row / 8] as m16n8k16 leaves them.
// `room`: FINISH_BYTES of shared memory that nobody uses any more, nor any copy is on its way to.
template <u32 N, u32 TILES, class Block>
PER_BLOCK void finish_block(const MatmulParams& p, const MatmulPlace& place, const u32 (&tiles)[TILES],
                         float (&sums)[TILES][N / 8][4], float* room) {
    Block::sync();
    if (p.splits > 1) {
        if (!add_splits<N, TILES, Block>(p, tiles, sums, reinterpret_cast<u32*>(room))) return;
        Block::sync();
    }
    const u32 g = lane() / 4, c = lane() % 4;
#pragma unroll
    for (u32 piece = 0; piece < N; piece += PIECE) {
        if (piece >= place.rows) break;
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
#pragma unroll
            for (u32 j = 0; j < PIECE / 8; j++) {
                float* to = room + (8 * j + 2 * c) * PIECE_PITCH + 16 * tiles[t] + g;
                const float (&from)[4] = sums[t][piece / 8 + j];
                to[0] = from[0], to[PIECE_PITCH] = from[1];
                to[8] = from[2], to[PIECE_PITCH + 8] = from[3];
            }
        }
        Block::sync();
        store_piece<Block>(p, place, piece, room);
        Block::sync();
    }
    const MatmulSegment& segment = p.segments[place.segment];
    if (place.block + 1 < segment.blocks) return;
    for (u32 row = 0; row < place.rows; row++) {
        store_zeros(segment.target, target_row(p, place, row), segment.n, Block::thread(),
                    Block::threads());
    }
}
