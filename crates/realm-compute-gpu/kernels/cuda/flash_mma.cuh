// Prefill attention with mma, for every device from sm_80 on: FlashAttention-2 (Dao, 2023). Warps have
// SLABS times 16 rows of the block's matrix of queries and go through keys and values STEP tokens at a
// time, which come through a ring in shared memory: keys, values, keys of the next step, and so on.
#pragma once
#include "flash.cuh"

template <u32 DIM_, u32 WARPS_, u32 SLABS_, u32 STEP_, u32 SLOTS_, bool HELD_>
struct MmaShape {
    static constexpr u32 DIM = DIM_, WARPS = WARPS_, SLABS = SLABS_, STEP = STEP_, SLOTS = SLOTS_;
    // Queries are in registers, not read from shared memory in each step.
    static constexpr bool HELD = HELD_;
    static constexpr u32 THREADS = WARPS * 32, ROWS = WARPS * SLABS * 16;
    static constexpr u32 PITCH = DIM * 2;
    static constexpr u32 SLOT_BYTES = STEP * PITCH;
    static constexpr u32 RING = ROWS * PITCH, FACTORS = RING + SLOTS * SLOT_BYTES;
    static constexpr u32 SHARED_BYTES = FACTORS + ROWS * 4;
    // Products of 16 elements.
    static constexpr u32 PRODUCTS = DIM / 16;
    // So many units of 16 bytes change places, so that those of eight rows, one below the other, are in
    // different banks.
    static constexpr u32 GROUP = DIM % 64 == 0 ? 8 : 4;
    static_assert(DIM % (GROUP * 8) == 0 && KV_BLOCK_TOKENS % STEP == 0, "");

    static DEVICE u32 turn(u32 row) { return GROUP == 8 ? row % 8 : row / 2 % 4; }

    // Where a unit of a row lies.
    static DEVICE u32 at(u32 row, u32 unit) {
        return row * PITCH + unit / GROUP * (GROUP * 16) + (unit % GROUP ^ turn(row)) * 16;
    }

    // From the place of unit 0 or 1 of a group of a row, that of the unit 2 k further, in which k is known
    // to the compiler: `bank` is the part of `from` in the group.
    static DEVICE u32 further(u32 bank, u32 k) {
        return k / (GROUP / 2) * (GROUP * 16) + (bank ^ k % (GROUP / 2) * 32);
    }
};

// The cache holds what the products take.
constexpr bool IS_DIRECT = Cache::BYTES == 2;

template <class In, class S>
struct MmaBlock {
    const FlashParams& p;
    // In shared memory: the loop has no registers to spare.
    const FlashTile& tile;
    u8* shared;
    // Of the KV head, in the first block.
    const u8* keys;
    const u8* values;
    // The next step to be copied, the block of the cache that it is in, and where it goes.
    u32 next, last;
    u32 block;
    u32 slot;
    u32 block_bytes;
    // Whether something is on its way.
    bool coming;

    FlashSoftmax<In> softmax[S::SLABS];
    float sums[S::SLABS][S::DIM / 2];
    u32 query[S::HELD ? S::PRODUCTS : 1][S::SLABS][4];

    ScaledUnit waiting[Cache::SCALED ? S::STEP * S::GROUP / S::THREADS : 1]
                      [Cache::SCALED ? S::DIM / (S::GROUP * 8) : 1];

    DEVICE MmaBlock(const FlashParams& params, const FlashTile& kept) : p(params), tile(kept) {}

    DEVICE float* factors() const { return reinterpret_cast<float*>(shared + S::FACTORS); }

    // The lane's first row of a slab.
    DEVICE u32 row_of(u32 slab) const { return (warp() * S::SLABS + slab) * 16 + lane() / 4; }

    // The block of the cache that has a step.
    DEVICE void find_block() {
        if (next < last) block = block_of(p.step, tile.sequence, next * S::STEP);
    }

    // Each thread copies the same unit of some rows' groups.
    static constexpr u32 ROWS_AT_ONCE = S::THREADS / S::GROUP;
    static constexpr u32 PASSES = (S::STEP + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    static constexpr u32 GROUPS = S::DIM / (S::GROUP * 8);
    static_assert(ROWS_AT_ONCE % 8 == 0 && S::STEP % ROWS_AT_ONCE == 0, "");

    // Starts copying keys or values of the next step; finish() is called before the next arrive(). Tokens
    // beyond the sequence's end are zeros, whatever the cache holds there. All threads come.
    template <bool KEYS>
    DEVICE void fetch() {
        coming = next < last;
        if (coming) {
            const u32 token = next * S::STEP;
            const u32 row = thread_index() / S::GROUP, unit = thread_index() % S::GROUP;
            const u8* from = (KEYS ? keys : values) + size_t(block) * block_bytes;
            u8* const to = shared + S::RING + slot * S::SLOT_BYTES + S::at(row, unit);
            const u32 there = tile.sequence.length - token;
            if constexpr (!Cache::SCALED) {
                copy(from, token % KV_BLOCK_TOKENS + row, unit, there > row ? there - row : 0, to);
            } else {
                load(from, token % KV_BLOCK_TOKENS + row, unit, there > row ? there - row : 0);
            }
            if (!KEYS) {
                next++;
                if (next * S::STEP % KV_BLOCK_TOKENS == 0) find_block();
            }
        }
        commit_async();
    }

    // Of the thread's rows, those from `there` on are beyond the sequence's end.
    DEVICE void copy(const u8* from, u32 token, u32 unit, u32 there, u8* to) {
        const u32 dim = p.kv.head_dim;
        const bool whole = there > S::STEP - ROWS_AT_ONCE;
        from += (token * dim + unit * 8) * Cache::BYTES;
        if (IS_DIRECT && whole) {
#pragma unroll
            for (u32 i = 0; i < PASSES; i++) {
#pragma unroll
                for (u32 j = 0; j < GROUPS; j++) {
                    if (unit * 8 + j * (S::GROUP * 8) < dim) {
                        copy_async16(to + i * ROWS_AT_ONCE * S::PITCH + j * (S::GROUP * 16),
                                     from + j * (S::GROUP * 16));
                    }
                }
                from += ROWS_AT_ONCE * dim * Cache::BYTES;
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < PASSES; i++) {
#pragma unroll
                for (u32 j = 0; j < GROUPS; j++) {
                    u32x4 v = {0, 0, 0, 0};
                    if (i * ROWS_AT_ONCE < there && unit * 8 + j * (S::GROUP * 8) < dim) {
                        v = load_unit<In>(from, dim, i * ROWS_AT_ONCE, j * S::GROUP);
                    }
                    *reinterpret_cast<u32x4*>(to + i * ROWS_AT_ONCE * S::PITCH +
                                              j * (S::GROUP * 16)) = v;
                }
            }
        }
    }

    // Integers wait in registers while what came before them is used.
    DEVICE void load(const u8* from, u32 token, u32 unit, u32 there) {
#pragma unroll
        for (u32 i = 0; i < PASSES; i++) {
#pragma unroll
            for (u32 j = 0; j < GROUPS; j++) {
                ScaledUnit& v = waiting[i][j];
                v = {{0, 0}, 0};
                if (i * ROWS_AT_ONCE < there && unit * 8 + j * (S::GROUP * 8) < p.kv.head_dim) {
                    v = load_scaled(from, p.kv.head_dim, token + i * ROWS_AT_ONCE,
                                    unit + j * S::GROUP);
                }
            }
        }
    }

    // Ends what fetch() started.
    DEVICE void finish() {
        if (!coming) return;
        if constexpr (Cache::SCALED) {
            u8* const to = shared + S::RING + slot * S::SLOT_BYTES +
                           S::at(thread_index() / S::GROUP, thread_index() % S::GROUP);
#pragma unroll
            for (u32 i = 0; i < PASSES; i++) {
#pragma unroll
                for (u32 j = 0; j < GROUPS; j++) {
                    *reinterpret_cast<u32x4*>(to + i * ROWS_AT_ONCE * S::PITCH +
                                              j * (S::GROUP * 16)) = convert_scaled(waiting[i][j]);
                }
            }
        }
        slot = slot + 1 == S::SLOTS ? 0 : slot + 1;
    }

    // Columns beyond the head's end are never copied: zeros once and for all.
    DEVICE void clear() const {
        for (u32 at = thread_index() * 16; at < S::SLOTS * S::SLOT_BYTES; at += S::THREADS * 16) {
            *reinterpret_cast<u32x4*>(shared + S::RING + at) = {0, 0, 0, 0};
        }
        sync_block();
    }

    static DEVICE float (&four(float* from))[4] { return *reinterpret_cast<float(*)[4]>(from); }

    DEVICE void load_query(u32 (&q)[S::SLABS][4], u32 k) const {
        const u32 row = lane() % 16;
        const u32 bank = (lane() / 16 ^ S::turn(row)) * 16;
#pragma unroll
        for (u32 slab = 0; slab < S::SLABS; slab++) {
            const u8* from = shared + ((warp() * S::SLABS + slab) * 16 + row) * S::PITCH;
            load_matrix_x4(q[slab], from + S::further(bank, k));
        }
    }

    // Products of queries and keys.
    DEVICE void score(float (&s)[S::SLABS][S::STEP / 2], const u8* from) const {
        const u32 row = lane() / 16 * 8 + lane() % 8;
        const u32 bank = (lane() / 8 % 2 ^ S::turn(row)) * 16;
        from += row * S::PITCH;
#pragma unroll
        for (u32 slab = 0; slab < S::SLABS; slab++) {
#pragma unroll
            for (u32 i = 0; i < S::STEP / 2; i++) s[slab][i] = 0.0f;
        }
#pragma unroll
        for (u32 k = 0; k < S::PRODUCTS; k++) {
            u32 loaded[S::SLABS][4];
            if constexpr (!S::HELD) load_query(loaded, k);
            const u32(*q)[4] = S::HELD ? query[S::HELD ? k : 0] : loaded;
#pragma unroll
            for (u32 tokens = 0; tokens < S::STEP / 16; tokens++) {
                u32 of_keys[4];
                load_matrix_x4(of_keys, from + tokens * 16 * S::PITCH + S::further(bank, k));
#pragma unroll
                for (u32 slab = 0; slab < S::SLABS; slab++) {
                    float* to = s[slab] + tokens * 8;
                    In::multiply(four(to), q[slab], of_keys[0], of_keys[1]);
                    In::multiply(four(to + 4), q[slab], of_keys[2], of_keys[3]);
                }
            }
        }
    }

    // Scores of the tokens from `token` on become weights.
    DEVICE void weigh(float (&s)[S::SLABS][S::STEP / 2], u32 token) {
        const bool whole = all_see(tile, token, S::STEP);
#pragma unroll
        for (u32 slab = 0; slab < S::SLABS; slab++) {
            if (p.soft_cap > 0.0f) {
                const float own[2] = {factors()[row_of(slab)], factors()[row_of(slab) + 8]};
                softmax[slab].cap(s[slab], p.soft_cap, own);
            }
            if (!whole) FlashSoftmax<In>::mask(p, tile, row_of(slab), s[slab], token);
            float less[2];
            if (softmax[slab].weigh(s[slab], less)) {
#pragma unroll
                for (u32 i = 0; i < S::DIM / 2; i++) sums[slab][i] *= less[i / 2 % 2];
            }
        }
    }

    DEVICE void add_values(const float (&s)[S::SLABS][S::STEP / 2], const u8* from) {
        const u32 row = lane() % 16;
        const u32 bank = (lane() / 16 ^ S::turn(row)) * 16;
        from += row * S::PITCH;
#pragma unroll
        for (u32 tokens = 0; tokens < S::STEP / 16; tokens++) {
            u32 weights[S::SLABS][4];
#pragma unroll
            for (u32 slab = 0; slab < S::SLABS; slab++) {
                FlashSoftmax<In>::pack(weights[slab], s[slab], tokens);
            }
#pragma unroll
            for (u32 k = 0; k < S::PRODUCTS; k++) {
                u32 of_values[4];
                load_matrix_x4_trans(of_values,
                                     from + tokens * 16 * S::PITCH + S::further(bank, k));
#pragma unroll
                for (u32 slab = 0; slab < S::SLABS; slab++) {
                    float* to = sums[slab] + k * 8;
                    In::multiply(four(to), weights[slab], of_values[0], of_values[1]);
                    In::multiply(four(to + 4), weights[slab], of_values[2], of_values[3]);
                }
            }
        }
    }

    // Waits until what was fetched SLOTS - 1 fetches ago is there for all, and until all have read what
    // was fetched before that.
    DEVICE void arrive() const {
        wait_async<S::SLOTS - 2>();
        sync_block();
    }

    DEVICE void run() {
        u32 step = tile.range.start / S::STEP;
        next = step;
        last = (tile.range.end + S::STEP - 1) / S::STEP;
        if (tile.range.start >= tile.range.end) last = next;
        slot = 0;
        block_bytes = p.kv.kv_heads * p.kv.tile_bytes;
        find_block();
#pragma unroll
        for (u32 i = 0; i < S::SLOTS - 1; i++) {
            if (i % 2 == 0) {
                fetch<true>();
            } else {
                fetch<false>();
            }
            finish();
        }
        store_queries<In, S::ROWS, S::DIM, S::WARPS>(
            p, tile, warp(), shared, factors(), [](u32 row, u32 unit) { return S::at(row, unit); });
        sync_block();
#pragma unroll
        for (u32 slab = 0; slab < S::SLABS; slab++) {
            softmax[slab].start(factors(), row_of(slab));
#pragma unroll
            for (u32 i = 0; i < S::DIM / 2; i++) sums[slab][i] = 0.0f;
        }
        if constexpr (S::HELD) {
#pragma unroll
            for (u32 k = 0; k < S::PRODUCTS; k++) load_query(query[k], k);
        }
        // An even number of slots fetches keys where it reads values, and the other way round.
        constexpr bool EVEN = S::SLOTS % 2 == 0;
        u32 read = 0;
#pragma unroll 1
        for (; step < last; step++) {
            float s[S::SLABS][S::STEP / 2];
            arrive();
            fetch<!EVEN>();
            score(s, shared + S::RING + read * S::SLOT_BYTES);
            finish();
            read = read + 1 == S::SLOTS ? 0 : read + 1;
            weigh(s, step * S::STEP);
            arrive();
            fetch<EVEN>();
            add_values(s, shared + S::RING + read * S::SLOT_BYTES);
            finish();
            read = read + 1 == S::SLOTS ? 0 : read + 1;
        }
        wait_async<0>();
    }

    DEVICE void store() {
#pragma unroll
        for (u32 slab = 0; slab < S::SLABS; slab++) {
            float by[2];
            softmax[slab].finish(p, tile, row_of(slab), by);
            store_sums(p, tile, row_of(slab), sums[slab], by);
        }
        store_rest(p, tile, thread_index(), S::THREADS);
    }
};

template <class In, class S>
DEVICE void attend_mma(const FlashParams& p) {
    SHARED(FlashTile, kept, 1);
    FlashTile tile;
    if (!find_tile(p, tile)) return wait_for_predecessor();
    if (thread_index() == 0) kept[0] = tile;
    sync_block();
    MmaBlock<In, S> it(p, kept[0]);
    it.shared = dynamic_shared();
    it.keys = p.kv.keys + size_t(it.tile.kv_head) * p.kv.tile_bytes;
    it.values = p.kv.values + size_t(it.tile.kv_head) * p.kv.tile_bytes;
    wait_for_predecessor();
    if (p.kv.head_dim < S::DIM) it.clear();
    it.run();
    // Not before: its blocks would take the place of this kernel's.
    let_successor_start();
    it.store();
}
