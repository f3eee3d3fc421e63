// Products of many rows on Hopper's tensor cores.
//
// Eight warps, two warpgroups, have a row tile each. A warp makes the fragments of its tile in
// registers, those of the next 64 k while the products of these 64 are under way; the activations,
// which all share, the tensor cores read from shared memory. Another warp fills two rings: one of
// stages of planes, one of chunks of 64 k of activations. No barrier of the block is in their way.
#pragma once
#include "matmul.cuh"

// Warps that multiply.
constexpr u32 CONSUMERS = BLOCK_TILES;

// What a kernel takes; src/cuda/kernels/matmul.rs computes the same bytes.
template <class F, u32 N>
struct WgmmaPlan {
    static constexpr u32 STAGE_BYTES = F::STAGE_TILES * F::TILE_BYTES;
    // The sums of 256 rows and fragments need more registers than nine warps may have, and only a
    // whole warpgroup can give its own away.
    static constexpr bool CLAIMS = N == 256;
    static constexpr u32 THREADS = CLAIMS ? 384 : 288;
    // Blocks for which a multiprocessor's memory is enough, its 228 KiB less the KiB that each
    // takes for itself: products of few rows wait for memory, not for one another.
    static constexpr u32 SHARERS = N <= 64 ? 2 : 1;
    static constexpr u32 BYTES = 228 * 1024 / SHARERS - 1024;
    // Those for which its registers are: weights that need no decoding are loaded too far ahead for
    // 96 a thread.
    static constexpr u32 BLOCKS = F::FLOAT && N == 64 ? 1 : SHARERS;

    // A chunk of the activations, and those of the ring.
    static constexpr u32 INPUT_BYTES = 128 * N;
    static constexpr u32 INPUTS = 4;
    static constexpr u32 TABLE_BYTES = CONSUMERS * WeightScales<F>::BYTES;
    static constexpr u32 BARRIER_BYTES = 256;
    // Stages of the ring of planes.
    static constexpr u32 MOST_STAGES =
        (BYTES - BARRIER_BYTES - INPUTS * INPUT_BYTES - TABLE_BYTES) / (CONSUMERS * STAGE_BYTES);
    static constexpr u32 STAGES = MOST_STAGES < 6 ? MOST_STAGES : 6;
    static_assert(STAGES >= 2, "too little shared memory");

    // Where they lie: the activations at multiples of 1024 bytes.
    static constexpr u32 PLANES = INPUTS * INPUT_BYTES;
    static constexpr u32 TABLES = PLANES + STAGES * CONSUMERS * STAGE_BYTES;
    static constexpr u32 BARRIERS = TABLES + TABLE_BYTES;
    static constexpr u32 SHARED_BYTES = BARRIERS + BARRIER_BYTES;
};

// A ring of COUNT places and, for each, the barriers that say that it is full and that it is empty.
// A thread's view of it: the place where it is, and the parity of the phase there.
template <u32 COUNT>
struct WgmmaRing {
    u64* barriers;
    u32 place = 0, phase = 0;

    DEVICE explicit WgmmaRing(u64* at) : barriers(at) {}
    // By one thread.
    DEVICE void init() const {
        for (u32 i = 0; i < COUNT; i++) {
            init_barrier(barriers + i, 1);
            init_barrier(barriers + COUNT + i, CONSUMERS);
        }
    }
    DEVICE u64* full(u32 at) const { return barriers + at; }
    DEVICE u64* empty(u32 at) const { return barriers + COUNT + at; }
    DEVICE void wait_full() const { wait_barrier(full(place), phase); }
    // At first all are.
    DEVICE void wait_empty() const { wait_barrier(empty(place), phase ^ 1); }
    DEVICE void next() {
        if (++place == COUNT) place = 0, phase ^= 1;
    }
};

// The threads that end a block (finish_block).
struct WgmmaConsumers {
    static DEVICE u32 thread() { return thread_index(); }
    static DEVICE u32 threads() { return 32 * CONSUMERS; }
    static DEVICE void sync() { sync_group(1, 32 * CONSUMERS); }
};

// What all warps know of a block.
template <class F, u32 N>
struct WgmmaBlock {
    using Plan = WgmmaPlan<F, N>;
    using Inputs = WgmmaRing<Plan::INPUTS>;
    using Planes = WgmmaRing<Plan::STAGES>;
    static constexpr u32 CHUNKS = STAGE_K<F> / 64;

    const MatmulParams& p;
    const MatmulPlace& place;
    u8* shared;
    // The stages of k of the block's share.
    u32 stages;
    Inputs inputs;
    Planes planes;
    // A barrier for which nobody waits.
    u64* ignored;

    DEVICE WgmmaBlock(const MatmulParams& params, const MatmulPlace& where, u8* memory)
        : p(params),
          place(where),
          shared(memory),
          stages(shuffle(where.end_stage - where.first_stage, 0)),
          inputs(reinterpret_cast<u64*>(memory + Plan::BARRIERS)),
          planes(inputs.barriers + 2 * Plan::INPUTS),
          ignored(planes.barriers + 2 * Plan::STAGES) {
        static_assert(8 * (2 * Plan::INPUTS + 2 * Plan::STAGES + 1) <= Plan::BARRIER_BYTES);
    }

    // By one thread.
    DEVICE void init() const {
        inputs.init();
        planes.init();
        init_barrier(ignored, CONSUMERS);
        fence_barriers();
    }
    // Tiles of a stage, counted from the block's first: the last of a row may lack some.
    DEVICE u32 tiles(u32 stage) const {
        if constexpr (F::STAGE_TILES == 1) return 1;
        const u32 all = (p.k + F::TILE_K - 1) / F::TILE_K;
        return min(F::STAGE_TILES, all - (place.first_stage + stage) * F::STAGE_TILES);
    }
};

// The warp that fills the rings.
template <class F, u32 N>
struct WgmmaProducer : WgmmaBlock<F, N> {
    using Block = WgmmaBlock<F, N>;
    using typename Block::Plan;
    using Block::inputs, Block::planes, Block::p, Block::place, Block::shared, Block::stages;
    // The next stage, and where the lane's row tile has it.
    u32 stage = 0;
    const u8* from;

    DEVICE explicit WgmmaProducer(const Block& block) : Block(block) {
        from = row_tile<F>(p, place, lane() % CONSUMERS) + place.first_stage * Plan::STAGE_BYTES;
    }

    DEVICE void copy_planes() {
        const u32 bytes = this->tiles(stage) * F::TILE_BYTES;
        planes.wait_empty();
        sync_warp();
        if (lane() == 0) arrive_expect(planes.full(planes.place), CONSUMERS * bytes);
        sync_warp();
        if (lane() < CONSUMERS) {
            u8* to = shared + Plan::PLANES +
                     (planes.place * CONSUMERS + lane()) * Plan::STAGE_BYTES;
            // Where other groups of rows read the same, it stays in the L2.
            copy_bulk(to, from, bytes, planes.full(planes.place), grid_x() == 1);
        }
        from += Plan::STAGE_BYTES;
        planes.next();
        stage++;
    }

    DEVICE void copy_input(u32 chunk) {
        inputs.wait_empty();
        // A lane that lagged behind would find the phase after the one that it waits for, which looks
        // like the one before.
        sync_warp();
        if (lane() == 0) {
            arrive_expect(inputs.full(inputs.place), Plan::INPUT_BYTES);
            copy_tensor(shared + inputs.place * Plan::INPUT_BYTES, p.map,
                        place.first_stage * STAGE_K<F> + 64 * chunk, place.first_row,
                        inputs.full(inputs.place));
        }
        inputs.next();
    }

    DEVICE void run() {
        constexpr u32 CHUNKS = Block::CHUNKS;
        const u32 chunks = stages * CHUNKS;
        // Weights do not wait for the kernel before.
        while (stage < min(stages, Plan::STAGES)) copy_planes();
        let_successor_start();
        wait_for_predecessor();
        // A place for a chunk is one that another was multiplied from: if that was a stage's last,
        // there is a place for a stage as well. So neither ring waits for the other.
        for (u32 chunk = 0; chunk < chunks || stage < stages; chunk++) {
            if (chunk < chunks) copy_input(chunk);
            if (stage < stages && chunk + 1 >= Plan::INPUTS + CHUNKS &&
                (chunk + 1 - Plan::INPUTS) % CHUNKS == 0) {
                copy_planes();
            }
        }
    }
};

// A warp of those that multiply.
template <class F, class In, u32 N>
struct WgmmaConsumer : WgmmaBlock<F, N> {
    using Block = WgmmaBlock<F, N>;
    using typename Block::Plan;
    using Block::inputs, Block::planes, Block::p, Block::shared, Block::stages;
    using Table = WeightScales<F>;
    static constexpr u32 CHUNKS = Block::CHUNKS;
    static_assert(Plan::INPUTS == 4 && Plan::INPUTS % CHUNKS == 0, "the loop has four turns");

    // The stage that is being decoded: the warp's tile of it, and its scales.
    u32 stage = 0;
    const u8* weights = nullptr;
    const u32 tile;
    float* table;
    // The descriptor of the ring of inputs.
    const u64 first_input;
    // The barrier that says that the ring's last place is empty: at first, it is.
    u64* last_used;
    // The fragments of a chunk's steps: while some are multiplied, the next are made.
    u32 fragments[2][4][4];
    float sums[N / 2];

    DEVICE explicit WgmmaConsumer(const Block& block)
        : Block(block),
          tile(shuffle(warp(), 0)),
          first_input(tile_descriptor(block.shared, 16, 1024)),
          last_used(Block::ignored),
          fragments{},
          sums{} {
        table = reinterpret_cast<float*>(shared + Plan::TABLES + tile * Table::BYTES);
    }

    DEVICE void begin_stage() {
        planes.wait_full();
        weights = shared + Plan::PLANES + (planes.place * CONSUMERS + tile) * Plan::STAGE_BYTES;
        if constexpr (!F::FLOAT) {
            // The table of the stage before has been read.
            sync_warp();
            Table::decode(table, weights, this->tiles(stage));
            sync_warp();
        }
    }

    template <u32 CHUNK>
    DEVICE void make_fragments(u32 (&to)[4][4]) {
        constexpr u32 IN_TILE = F::TILE_K / 64;
        const typename F::Chunk chunk(weights + CHUNK / IN_TILE * F::TILE_BYTES +
                                          CHUNK % IN_TILE * F::Chunk::CHUNK_BYTES,
                                      lane());
        float low[Table::CHUNK] = {}, high[Table::CHUNK] = {};
        if constexpr (!F::FLOAT) {
            const float* from = table + Table::ROW * (lane() / 4) + Table::CHUNK * CHUNK;
            load_floats(from, low);
            load_floats(from + 8 * Table::ROW, high);
        }
#pragma unroll
        for (u32 step = 0; step < 4; step++) dequantized<F, In>(chunk, step, low, high, to[step]);
        if constexpr (CHUNK + 1 == CHUNKS) {
            sync_warp();
            if (lane() == 0) arrive(planes.empty(planes.place));
            planes.next();
            stage++;
        }
    }

    // Starts the products of a chunk that is there, then waits for those of the chunk before.
    template <u32 PLACE>
    DEVICE void multiply(u32 (&from)[4][4]) {
#pragma unroll
        for (u32 step = 0; step < 4; step++) pin_registers(from[step]);
        pin_registers(sums);
        wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            // Addresses in a descriptor have units of 16 bytes.
            const u64 input = first_input + (PLACE * Plan::INPUT_BYTES / 16 + 2 * step);
            if constexpr (SAME<In, InBf16>) {
                wgmma_bf16<N>(sums, from[step], input);
            } else {
                wgmma_f16<N>(sums, from[step], input);
            }
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (lane() == 0) arrive(PLACE == 0 ? last_used : inputs.empty(PLACE - 1));
    }

    // Multiplies a chunk, that of place TURN of the ring, and makes the next one's fragments, if
    // there is one.
    template <u32 TURN>
    DEVICE bool turn() {
        multiply<TURN>(fragments[TURN % 2]);
        constexpr u32 NEXT = (TURN + 1) % CHUNKS;
        if constexpr (NEXT == 0) {
            if (stage == stages) return false;
            begin_stage();
        }
        if constexpr (TURN + 1 == Plan::INPUTS) {
            last_used = inputs.empty(TURN);
            inputs.phase ^= 1;
        }
        // Before the fragments are made, so that these wait for nothing.
        wait_barrier(inputs.full((TURN + 1) % Plan::INPUTS), inputs.phase);
        make_fragments<NEXT>(fragments[(TURN + 1) % 2]);
        return true;
    }

    DEVICE void run() {
        if (stages > 0) {
            begin_stage();
            make_fragments<0>(fragments[0]);
        }
        wait_for_predecessor();
        if (stages > 0) {
            wait_barrier(inputs.full(0), inputs.phase);
            while (turn<0>() && turn<1>() && turn<2>() && turn<3>()) {
            }
            wgmma_wait<0>();
            pin_registers(sums);
        }
        const u32 tiles[1] = {tile};
        finish_block<N, 1, WgmmaConsumers>(
            p, this->place, tiles, reinterpret_cast<float (&)[1][N / 8][4]>(sums),
            reinterpret_cast<float*>(shared));
    }
};

// A block's work. Weights are In; `THREADS` threads, `SHARED_BYTES` of shared memory.
template <class F, class In, u32 N>
DEVICE void matmul_wgmma(const MatmulParams& p) {
    using Plan = WgmmaPlan<F, N>;
    const MatmulPlace place = find_place<F, N>(p);
    if (place.rows == 0) return wait_for_predecessor();
    const WgmmaBlock<F, N> block(p, place, aligned_shared());
    if (thread_index() == 0) block.init();
    sync_block();
    if (shuffle(warp(), 0) < CONSUMERS) {
        if constexpr (Plan::CLAIMS) claim_registers<232>();
        WgmmaConsumer<F, In, N>(block).run();
    } else {
        if constexpr (Plan::CLAIMS) drop_registers<40>();
        if (warp() > CONSUMERS) return wait_for_predecessor();
        WgmmaProducer<F, N>(block).run();
    }
}
