// Prefill attention with wgmma, for sm_90a: FlashAttention-3 (Shah et al., 2024). One warpgroup fetches
// keys and values, a step of tokens at a time, into rings in shared memory; two or three have 64 rows
// each of the block's matrix of queries. While one of these turns scores to weights, the tensor cores work
// for another; and a warpgroup's scores of the next step are under way before its sums of this one.
//
// Steps go from a tile's last one to its first: those to be masked come at the start.
#pragma once
#include "flash.cuh"

template <class In_, u32 DIM_>
struct WgmmaShape {
    using In = In_;
    static constexpr u32 DIM = DIM_;
    // Warpgroups with rows, and the rows of all.
    static constexpr u32 GROUPS = DIM > 64 ? 2 : 3, ROWS = GROUPS * 64;
    static constexpr u32 THREADS = 128 + GROUPS * 128;
    // Tokens of a step, and the cache's blocks that they are.
    static constexpr u32 STEP = DIM > 128 ? 64 : 128, BLOCKS = STEP / KV_BLOCK_TOKENS;
    static constexpr u32 STAGES = DIM > 64 ? 2 : 4;
    // The cache holds what the products take: the copy engine fetches it. Else the threads of the first
    // warpgroup convert it, from pieces that the engine has brought.
    static constexpr bool DIRECT = Cache::BYTES == 2;
    // Whether the warpgroups take turns at the tensor cores. With large heads there is less to hide.
    static constexpr bool TURNS = DIM <= 128;
    static constexpr u32 FETCH_REGISTERS = DIRECT ? 24 : GROUPS == 2 ? 56 : 32;
    static constexpr u32 REGISTERS = GROUPS == 2 ? DIRECT ? 240 : 224 : 160;
    static_assert(FETCH_REGISTERS + GROUPS * REGISTERS <= 512, "a multiprocessor's registers");

    // A panel: 64 columns of a matrix, 128 bytes a row, as tile_descriptor() says.
    static constexpr u32 PANELS = (DIM + 63) / 64;
    static constexpr u32 QUERY_PANEL = ROWS * 128, PANEL = STEP * 128;
    static constexpr u32 QUERY_BYTES = PANELS * QUERY_PANEL, STAGE_BYTES = PANELS * PANEL;

    // Tokens and bytes of a piece: a tile of the cache as it is, or some of its tokens.
    static constexpr u32 PIECE = Cache::SCALED ? KV_BLOCK_TOKENS : 16;
    static constexpr u32 SLOT_BYTES =
        PIECE * DIM * Cache::BYTES + (Cache::SCALED ? PIECE * DIM / KV_SCALE_SPAN * 2 : 0);
    static constexpr u32 SLOTS = DIRECT ? 0 : DIM > 128 ? 2 : 4;

    // Where things lie in shared memory.
    static constexpr u32 KEYS = QUERY_BYTES, VALUES = KEYS + STAGES * STAGE_BYTES;
    static constexpr u32 RAW = VALUES + STAGES * STAGE_BYTES;
    static constexpr u32 FACTORS = RAW + SLOTS * SLOT_BYTES;
    static constexpr u32 BARRIERS = FACTORS + ROWS * 4;
    static constexpr u32 TILE = BARRIERS + (4 * STAGES + GROUPS + SLOTS) * 8;
    static constexpr u32 SHARED_BYTES = TILE + 96;
    static_assert(sizeof(FlashTile) <= 96 && SHARED_BYTES <= 232448, "a block's shared memory");
};

// The block's shared memory. Rings have a stage for a step of keys, and one for its values.
template <class S>
struct WgmmaMemory {
    u8* start;

    DEVICE u64* barriers() const { return reinterpret_cast<u64*>(start + S::BARRIERS); }
    // What a stage holds is there; all have read it.
    DEVICE u64* full(bool values, u32 stage) const {
        return barriers() + (values ? S::STAGES : 0) + stage;
    }
    DEVICE u64* empty(bool values, u32 stage) const {
        return barriers() + (values ? 3 : 2) * S::STAGES + stage;
    }
    // The warpgroup may start its products.
    DEVICE u64* turn(u32 group) const { return barriers() + 4 * S::STAGES + group; }
    // A piece of the cache is there.
    DEVICE u64* piece(u32 slot) const { return barriers() + 4 * S::STAGES + S::GROUPS + slot; }

    DEVICE u8* stage(bool values, u32 stage) const {
        return start + (values ? S::VALUES : S::KEYS) + stage * S::STAGE_BYTES;
    }
    DEVICE u8* slot(u32 slot) const { return start + S::RAW + slot * S::SLOT_BYTES; }
    DEVICE float* factors() const { return reinterpret_cast<float*>(start + S::FACTORS); }
    DEVICE FlashTile& tile() const { return *reinterpret_cast<FlashTile*>(start + S::TILE); }

    // Where 8 elements of a row lie in panels of so many bytes.
    static DEVICE u32 at(u32 panel_bytes, u32 row, u32 unit) {
        return unit / 8 * panel_bytes + row * 128 + (unit ^ row) % 8 * 16;
    }

    // One thread's.
    DEVICE void init() const {
        for (u32 i = 0; i < 2 * S::STAGES; i++) {
            init_barrier(full(false, i), 1);
            init_barrier(empty(false, i), S::GROUPS * 4);
        }
        for (u32 i = 0; i < S::GROUPS; i++) init_barrier(turn(i), 4);
        if constexpr (!S::DIRECT) {
            for (u32 i = 0; i < S::SLOTS; i++) init_barrier(piece(i), 1);
        }
        fence_barriers();
    }
};

// The steps of a tile, from the last to the first.
struct WgmmaSteps {
    u32 count, last;

    template <class S>
    static DEVICE WgmmaSteps of(const FlashTile& tile) {
        if (tile.first >= tile.end) return {0, 0};
        const u32 last = (tile.end - 1) / S::BLOCKS;
        return {last - tile.first / S::BLOCKS + 1, last};
    }
};

// What comes at a place of the order in which keys and values are fetched: the keys of a step come before
// the values of the step before.
struct WgmmaFetch {
    bool values;
    // From the last step.
    u32 step;

    static DEVICE WgmmaFetch at(u32 place, u32 steps) {
        if (place + 1 == 2 * steps) return {true, steps - 1};
        const bool values = place > 0 && place % 2 == 0;
        return {values, values ? place / 2 - 1 : (place + 1) / 2};
    }
};

// One thread's: fetches all keys and values. Blocks beyond the sequence's end are left out.
template <class S>
DEVICE void fetch_direct(const FlashParams& p, const WgmmaMemory<S>& memory) {
    const FlashTile& tile = memory.tile();
    const WgmmaSteps steps = WgmmaSteps::of<S>(tile);
    const u32* blocks = p.step.tables + tile.sequence.table;
    const u32 there = (tile.sequence.length + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
#pragma unroll 1
    for (u32 place = 0; place < 2 * steps.count; place++) {
        const WgmmaFetch it = WgmmaFetch::at(place, steps.count);
        const u32 stage = it.step % S::STAGES;
        const u32 first = (steps.last - it.step) * S::BLOCKS;
        const u32 count = min(S::BLOCKS, there - first);
        u64* full = memory.full(it.values, stage);
        wait_barrier(memory.empty(it.values, stage), it.step / S::STAGES + 1);
        arrive_expect(full, count * (KV_BLOCK_TOKENS * 128 * S::PANELS));
#pragma unroll 1
        for (u32 i = 0; i < count; i++) {
            const u32 row = (blocks[first + i] * p.kv.kv_heads + tile.kv_head) * KV_BLOCK_TOKENS;
            u8* to = memory.stage(it.values, stage) + i * (KV_BLOCK_TOKENS * 128);
#pragma unroll
            for (u32 panel = 0; panel < S::PANELS; panel++) {
                copy_tensor(to + panel * S::PANEL, it.values ? p.values : p.keys, panel * 64, row, full);
            }
        }
    }
}

// A warpgroup's: fetches pieces of the cache and converts them. Tokens beyond the sequence's end and
// columns beyond the head's are zeros.
template <class S>
struct WgmmaConverter {
    static constexpr u32 PIECES = S::STEP / S::PIECE;
    static constexpr u32 UNITS = S::DIM / 8;
    const FlashParams& p;
    const WgmmaMemory<S>& memory;
    const FlashTile& tile;
    WgmmaSteps steps;

    // The first token of a piece.
    DEVICE u32 token_of(const WgmmaFetch& it, u32 piece) const {
        return (steps.last - it.step) * S::STEP + piece * S::PIECE;
    }

    // One thread's: starts fetching the piece of the number.
    DEVICE void fetch(u32 number) const {
        if (number >= 2 * steps.count * PIECES) return;
        const WgmmaFetch it = WgmmaFetch::at(number / PIECES, steps.count);
        const u32 token = token_of(it, number % PIECES);
        u64* there = memory.piece(number % S::SLOTS);
        if (token >= tile.sequence.length) return arrive(there);
        const u32 bytes = Cache::SCALED ? p.kv.tile_bytes : S::PIECE * p.kv.head_dim * Cache::BYTES;
        const u8* from = (it.values ? p.kv.values : p.kv.keys) +
                         tile_offset(p.kv, block_of(p.step, tile.sequence, token), tile.kv_head) +
                         token % KV_BLOCK_TOKENS * (p.kv.head_dim * Cache::BYTES);
        arrive_expect(there, bytes);
        copy_bulk(memory.slot(number % S::SLOTS), from, bytes, there);
    }

    DEVICE void convert(const u8* from, u8* to, u32 row, u32 there) const {
#pragma unroll 4
        for (u32 i = thread_index() % 128; i < S::PIECE * UNITS; i += 128) {
            const u32 token = i / UNITS, unit = i % UNITS;
            u32x4 v = {0, 0, 0, 0};
            if (token < there && unit * 8 < p.kv.head_dim) {
                v = load_unit<typename S::In>(from, p.kv.head_dim, token, unit);
            }
            *reinterpret_cast<u32x4*>(to + WgmmaMemory<S>::at(S::PANEL, row + token, unit)) = v;
        }
    }

    DEVICE void run() const {
        const bool leads = thread_index() % 128 == 0;
        if (leads) {
            for (u32 i = 0; i < S::SLOTS; i++) fetch(i);
        }
        u32 number = 0;
#pragma unroll 1
        for (u32 place = 0; place < 2 * steps.count; place++) {
            const WgmmaFetch it = WgmmaFetch::at(place, steps.count);
            const u32 stage = it.step % S::STAGES;
            wait_barrier(memory.empty(it.values, stage), it.step / S::STAGES + 1);
#pragma unroll 1
            for (u32 piece = 0; piece < PIECES; piece++, number++) {
                const u32 slot = number % S::SLOTS, token = token_of(it, piece);
                const u32 there = tile.sequence.length - min(token, tile.sequence.length);
                wait_barrier(memory.piece(slot), number / S::SLOTS);
                convert(memory.slot(slot), memory.stage(it.values, stage), piece * S::PIECE, there);
                if (piece + 1 == PIECES) fence_async();
                sync_group(2 + S::GROUPS, 128);
                if (leads) fetch(number + S::SLOTS);
            }
            if (leads) arrive(memory.full(it.values, stage));
        }
    }
};

// A warpgroup with 64 rows.
template <class S>
struct WgmmaRows {
    using In = typename S::In;
    const FlashParams& p;
    const WgmmaMemory<S>& memory;
    const FlashTile& tile;
    u32 group;
    // The lane's first row of the matrix.
    u32 m;
    FlashSoftmax<In> softmax;
    // Products, then weights, of a step.
    float scores[S::STEP / 2];
    float sums[S::DIM / 2];
    u32 weights[S::STEP / 16][4];

    DEVICE WgmmaRows(const FlashParams& params, const WgmmaMemory<S>& shared)
        : p(params), memory(shared), tile(shared.tile()) {
        group = shuffle(warp() / 4 - 1, 0u);
        m = (warp() - 4) * 16 + lane() / 4;
    }

    DEVICE void pin_weights() {
#pragma unroll
        for (u32 k = 0; k < S::STEP / 16; k++) pin_registers(weights[k]);
    }

    // Starts a step's products of queries and keys.
    DEVICE void multiply_keys(u32 stage) {
        const u64 a = tile_descriptor(memory.start + group * (64 * 128), 0, 1024);
        const u64 b = tile_descriptor(memory.stage(false, stage), 0, 1024);
#pragma unroll
        for (u32 k = 0; k < S::DIM / 16; k++) {
            // Descriptors count in 16 bytes.
            const u64 from = a + (k / 4 * S::QUERY_PANEL + k % 4 * 32) / 16;
            const u64 by = b + (k / 4 * S::PANEL + k % 4 * 32) / 16;
            if constexpr (In::NARROW) {
                wgmma_f16<S::STEP>(scores, from, by, k > 0);
            } else {
                wgmma_bf16<S::STEP>(scores, from, by, k > 0);
            }
        }
        wgmma_commit();
    }

    // Starts adding a step's products of weights and values to the sums.
    DEVICE void multiply_values(u32 stage) {
        const u64 b = tile_descriptor(memory.stage(true, stage), S::PANEL, 1024);
#pragma unroll
        for (u32 k = 0; k < S::STEP / 16; k++) {
            if constexpr (In::NARROW) {
                wgmma_f16<S::DIM, true>(sums, weights[k], b + k * (2048 / 16));
            } else {
                wgmma_bf16<S::DIM, true>(sums, weights[k], b + k * (2048 / 16));
            }
        }
        wgmma_commit();
    }

    // The warp has read what the stage holds.
    DEVICE void release(bool values, u32 stage) const {
        if (lane() == 0) arrive(memory.empty(values, stage));
    }

    // Scores of the tokens from `token` on become weights.
    DEVICE bool weigh(u32 token, float (&less)[2]) {
        if (p.soft_cap > 0.0f) {
            const float own[2] = {memory.factors()[m], memory.factors()[m + 8]};
            softmax.cap(scores, p.soft_cap, own);
        }
        if (!all_see(tile, token, S::STEP)) {
            FlashSoftmax<In>::mask(p, tile, m, scores, token);
        }
        return softmax.weigh(scores, less);
    }

    DEVICE void pack() {
#pragma unroll
        for (u32 k = 0; k < S::STEP / 16; k++) FlashSoftmax<In>::pack(weights[k], scores, k);
    }

    // Weights of 0 do not make what lies beyond the sequence's end 0: it may be no number. All warpgroups
    // with rows come.
    DEVICE void clear_rest(u32 token) const {
        const u32 there = tile.sequence.length - token;
        if (!S::DIRECT || there >= S::STEP) return;
        constexpr u32 UNITS = S::DIM / 8;
        u8* to = memory.stage(true, 0);
        for (u32 i = there * UNITS + thread_index() - 128; i < S::STEP * UNITS; i += S::GROUPS * 128) {
            const u32 at = WgmmaMemory<S>::at(S::PANEL, i / UNITS, i % UNITS);
            *reinterpret_cast<u32x4*>(to + at) = {0, 0, 0, 0};
        }
        fence_async();
        sync_group(1, S::GROUPS * 128);
    }

    DEVICE void run() {
        store_queries<In, S::ROWS, S::DIM, S::GROUPS * 4>(
            p, tile, warp() - 4, memory.start, memory.factors(),
            [](u32 row, u32 unit) { return WgmmaMemory<S>::at(S::QUERY_PANEL, row, unit); });
        fence_async();
        sync_group(1, S::GROUPS * 128);
        softmax.start(memory.factors(), m);
#pragma unroll
        for (u32 i = 0; i < S::DIM / 2; i++) sums[i] = 0.0f;
        const WgmmaSteps steps = WgmmaSteps::of<S>(tile);
        if (steps.count == 0) return;

        float less[2];
        u32 token = steps.last * S::STEP;
        wait_barrier(memory.full(false, 0), 0);
        wgmma_fence();
        multiply_keys(0);
        wgmma_wait<0>();
        pin_registers(scores);
        release(false, 0);
        weigh(token, less);
        pack();
        wait_barrier(memory.full(true, 0), 0);
        clear_rest(token);

        // Of the step before.
        u32 stage = 0, phase = 0;
#pragma unroll 1
        for (u32 i = 1; i < steps.count; i++) {
            const u32 next = i % S::STAGES, next_phase = i / S::STAGES;
            wait_barrier(memory.full(false, next), next_phase);
            if constexpr (S::TURNS) wait_barrier(memory.turn(group), group == 0 ? i : i - 1);
            pin_registers(sums);
            pin_registers(scores);
            pin_weights();
            wgmma_fence();
            multiply_keys(next);
            wait_barrier(memory.full(true, stage), phase);
            wgmma_fence();
            multiply_values(stage);
            if constexpr (S::TURNS) {
                if (lane() == 0) arrive(memory.turn(group + 1 < S::GROUPS ? group + 1 : 0));
            }
            wgmma_wait<1>();
            pin_registers(scores);
            release(false, next);
            token -= S::STEP;
            const bool rescale = weigh(token, less);
            pin_registers(scores);
            // In two places, so that the compiler cannot wait before the branch, which comes after
            // the weights: they are made while products run.
            if (rescale) {
                wgmma_wait<0>();
                pin_registers(sums);
#pragma unroll
                for (u32 j = 0; j < S::DIM / 2; j++) sums[j] *= less[j / 2 % 2];
            }
            wgmma_wait<0>();
            pin_registers(sums);
            release(true, stage);
            pack();
            stage = next, phase = next_phase;
        }
        wait_barrier(memory.full(true, stage), phase);
        pin_registers(sums);
        pin_weights();
        wgmma_fence();
        multiply_values(stage);
        wgmma_wait<0>();
        pin_registers(sums);
    }

    // Stores 16-bit results, whole rows at a time: each warp's 16 rows go through the place of its queries.
    template <bool F16>
    DEVICE void store_rows(const float (&by)[2]) {
        // The warpgroup's products have read the queries.
        sync_group(2 + group, 128);
#pragma unroll
        for (u32 i = 0; i < S::DIM / 2; i += 2) {
            const u32 half = i / 2 % 2;
            const float x = sums[i] * by[half], y = sums[i + 1] * by[half];
            *reinterpret_cast<u32*>(memory.start +
                                    WgmmaMemory<S>::at(S::QUERY_PANEL, m + half * 8, i / 4) +
                                    lane() % 4 * 4) = F16 ? pack_f16(x, y) : pack_bf16(x, y);
        }
        sync_warp();
        constexpr u32 UNITS = S::PANELS * 8;
        const u32 unit = lane() % UNITS;
        if (unit * 8 >= p.kv.head_dim) return;
#pragma unroll 2
        for (u32 i = lane() / UNITS; i < 16; i += 32 / UNITS) {
            const u32 row = m - lane() / 4 + i;
            const MatrixRow its = matrix_row(p, tile, row);
            if (!its.there) continue;
            u16* to = static_cast<u16*>(p.target.data) +
                      size_t(tile.row + its.row) * p.target.stride +
                      (tile.head + its.head) * p.kv.head_dim + unit * 8;
            *reinterpret_cast<u32x4*>(to) = *reinterpret_cast<const u32x4*>(
                memory.start + WgmmaMemory<S>::at(S::QUERY_PANEL, row, unit));
        }
    }

    DEVICE void store() {
        float by[2];
        softmax.finish(p, tile, m, by);
        const u32 form = p.target.form;
        if (form == FORM_BF16) {
            store_rows<false>(by);
        } else if (form == FORM_F16) {
            store_rows<true>(by);
        } else {
            store_sums(p, tile, m, sums, by);
        }
        store_rest(p, tile, thread_index() - 128, S::GROUPS * 128);
    }
};

template <class In, u32 DIM>
DEVICE void attend_wgmma(const FlashParams& p) {
    using S = WgmmaShape<In, DIM>;
    const WgmmaMemory<S> memory{aligned_shared()};
    FlashTile found;
    if (!find_tile(p, found)) return wait_for_predecessor();
    if (thread_index() == 0) {
        memory.tile() = found;
        memory.init();
    }
    sync_block();
    wait_for_predecessor();
    if (warp() < 4) {
        drop_registers<S::FETCH_REGISTERS>();
        if constexpr (S::DIRECT) {
            if (thread_index() == 0) fetch_direct<S>(p, memory);
        } else {
            WgmmaConverter<S>{p, memory, memory.tile(), WgmmaSteps::of<S>(memory.tile())}.run();
        }
    } else {
        claim_registers<S::REGISTERS>();
        WgmmaRows<S> rows(p, memory);
        rows.run();
        // Not before: its blocks would take the place of this kernel's.
        let_successor_start();
        rows.store();
    }
}
