// Kernels that test the emulation of what Hopper brought.
#include "intrinsics.cuh"

struct Arguments {
    TensorMap a, b;
    const u16* from;
    u32* to;
    u32 count;
    u32 what;
};

constexpr u32 TILE = 8192;

DEVICE u32 pair(const u16* from, u32 at) { return from[at] | u32(from[at + 1]) << 16; }

DEVICE void sink(u32* to, u32 value) {
    if (value == 12345) *to = value;
}

// Where unit u (16 bytes) of row r of a tile is.
DEVICE u32x4* unit(u8* tile, u32 r, u32 u) {
    return reinterpret_cast<u32x4*>(tile + 128 * r + 16 * (u ^ r % 8));
}

// from: a of 64 rows of 64 k, then b: N rows of 64 k, or transposed 64 k of N; in shared memory both by
// copy_tensor or, a, by hand. to: the sums of wgmma, [64][N], then those of mma.
// what: 1: f16, 2: b transposed, 4: a from registers, 8: a by hand, 16: d is not added to at first.
template <u32 N, bool F16, bool TRANSPOSED>
DEVICE void multiply(const Arguments& p) {
    u8* a_tile = aligned_shared();
    u8* b_tile = a_tile + TILE;
    SHARED(u64, barrier, 1);
    const u32 t = thread_index(), g = lane() / 4, c = lane() % 4 * 2;
    const bool registers = p.what & 4, by_hand = p.what & 8;
    if (t == 0) {
        init_barrier(barrier, 1);
        fence_barriers();
    }
    wait_for_predecessor();
    sync_block();
    if (by_hand) {
        for (u32 i = t; i < 512; i += 128)
            *unit(a_tile, i / 8, i % 8) = reinterpret_cast<const u32x4*>(p.from)[i];
        fence_async();
        sync_group(5, 128);
    }
    if (t == 33) {
        arrive_expect(barrier, (by_hand ? 0 : TILE) + (N < 64 && TRANSPOSED ? 64 : N) * 128);
        if (!by_hand) copy_tensor(a_tile, p.a, 0, 0, barrier);
        if (TRANSPOSED) {
            for (u32 n = 0; n < N; n += 64) copy_tensor(b_tile + n / 64 * TILE, p.b, n, 0, barrier);
        } else {
            copy_tensor(b_tile, p.b, 0, 0, barrier);
        }
    }
    const u16* b = p.from + 4096;
    float d[N / 2], expected[N / 2];
    for (u32 i = 0; i < N / 2; i++) d[i] = expected[i] = float(i % 7) * 0.3f;
    if (p.what & 16) {
        for (u32 i = 0; i < N / 2; i++) expected[i] = 0;
    }
    wait_barrier(barrier, 0);
    pin_registers(d);
    wgmma_fence();
    for (u32 s = 0; s < 4; s++) {
        const u16* row = p.from + (warp() * 16 + g) * 64 + 16 * s + c;
        const u32 fragment[4] = {pair(row, 0), pair(row, 512), pair(row, 8), pair(row, 520)};
        const u64 a_at = tile_descriptor(a_tile + 32 * s, 0, 1024);
        const u64 b_at = TRANSPOSED ? tile_descriptor(b_tile + 2048 * s, TILE, 1024)
                                    : tile_descriptor(b_tile + 32 * s, 0, 1024);
        const bool add = s || !(p.what & 16);
        if constexpr (F16) {
            registers ? wgmma_f16<N, TRANSPOSED>(d, fragment, b_at, add)
                      : wgmma_f16<N, TRANSPOSED>(d, a_at, b_at, add);
        } else {
            registers ? wgmma_bf16<N, TRANSPOSED>(d, fragment, b_at, add)
                      : wgmma_bf16<N, TRANSPOSED>(d, a_at, b_at, add);
        }
        for (u32 j = 0; j < N / 8; j++) {
            const u32 k = 16 * s + c, n = 8 * j + g;
            auto word = [&](u32 k) {
                return TRANSPOSED ? b[k * N + n] | u32(b[(k + 1) * N + n]) << 16
                                  : pair(b, n * 64 + k);
            };
            float(&sums)[4] = *reinterpret_cast<float(*)[4]>(expected + 4 * j);
            F16 ? mma_f16(sums, fragment, word(k), word(k + 8))
                : mma_bf16(sums, fragment, word(k), word(k + 8));
        }
    }
    wgmma_commit();
    bool poisoned = true;
    for (u32 i = 0; i < N / 2; i++) poisoned = poisoned && float_bits(d[i]) == ~0u;
    if (!poisoned) return;
    wgmma_wait<0>();
    pin_registers(d);
    for (u32 i = 0; i < N / 2; i++) {
        const u32 at = (warp() * 16 + g + i / 2 % 2 * 8) * N + i / 4 * 8 + c + i % 2;
        p.to[at] = float_bits(d[i]);
        p.to[64 * N + at] = float_bits(expected[i]);
    }
}

#define PRODUCTS(n)                                                            \
    KERNEL(products_n##n, Arguments, 128) {                                    \
        switch (p.what % 4) {                                                  \
        case 0: multiply<n, false, false>(p); break;                           \
        case 1: multiply<n, true, false>(p); break;                            \
        case 2: multiply<n, false, true>(p); break;                            \
        default: multiply<n, true, true>(p);                                   \
        }                                                                      \
    }
PRODUCTS(16)
PRODUCTS(32)
PRODUCTS(64)
PRODUCTS(96)
PRODUCTS(128)
PRODUCTS(192)
PRODUCTS(256)

// A box of a matrix, at column `count` % 65536 of row `count` / 65536: to is the tile as it lies in shared
// memory, 2048 words.
KERNEL(boxes, Arguments, 64) {
    u8* tile = aligned_shared();
    SHARED(u64, barrier, 1);
    const u32 t = thread_index();
    if (t == 0) {
        init_barrier(barrier, 1);
        fence_barriers();
        arrive_expect(barrier, TILE);
        copy_tensor(tile, p.a, p.count % 65536, p.count / 65536, barrier);
    }
    wait_for_predecessor();
    sync_block();
    wait_barrier(barrier, 0);
    for (u32 i = t; i < 2048; i += 64) p.to[i] = reinterpret_cast<u32*>(tile)[i];
}

// A warp brings `count` pieces of 512 bytes through three places; four warps, in two groups that tell
// each other of every piece, take turns to double them; all add them up. to: a sum a thread.
KERNEL(ring, Arguments, 160) {
    constexpr u32 PLACES = 3;
    u32* places = reinterpret_cast<u32*>(aligned_shared());
    SHARED(u64, full, PLACES);
    SHARED(u64, empty, PLACES);
    const u32 t = thread_index();
    if (t < PLACES) {
        init_barrier(full + t, 1);
        init_barrier(empty + t, 4);
        fence_barriers();
    }
    wait_for_predecessor();
    sync_block();
    if (warp() == 4) {
        drop_registers<40>();
        if (lane() > 0) return;
        for (u32 i = 0; i < p.count; i++) {
            const u32 at = i % PLACES, phase = i / PLACES;
            wait_barrier(empty + at, phase + 1);
            arrive_expect(full + at, 512);
            copy_bulk(places + 128 * at, p.from + 256 * i, 512, full + at, true);
        }
        return;
    }
    claim_registers<208>();
    const u32 group = t / 64;
    u32 sum = 0;
    for (u32 i = 0; i < p.count; i++) {
        const u32 at = i % PLACES, phase = i / PLACES;
        u32* piece = places + 128 * at;
        wait_barrier(full + at, phase);
        if (i % 2 == group) {
            piece[t % 64] *= 2;
            piece[64 + t % 64] *= 2;
            fence_async();
        }
        sync_group(1 + i % 2, 128);
        sum = sum * 3 + piece[127 - t] + piece[t];
        sync_warp();
        if (lane() == 0) arrive(empty + at);
    }
    p.to[t] = sum;
}

// Fails where `count` is not 0.
KERNEL(nothing_else_runs_this, Arguments, 32) {
    if (p.count == 0) wait_for_predecessor();
}

// For timing: `count` products m64n128k16 of bf16 by a warpgroup.
KERNEL(many_products, Arguments, 128) {
    u8* tile = aligned_shared();
    for (u32 i = thread_index(); i < 512 * 3; i += 128)
        reinterpret_cast<u32x4*>(tile)[i] = {0, 0, 0, 0};
    wait_for_predecessor();
    fence_async();
    sync_block();
    float d[64];
    for (float& sum : d) sum = 0;
    for (u32 i = 0; i < p.count; i++) {
        wgmma_fence();
        wgmma_bf16<128>(d, tile_descriptor(tile, 0, 1024), tile_descriptor(tile + TILE, 0, 1024), true);
        wgmma_commit();
        wgmma_wait<0>();
    }
    sink(p.to, float_bits(d[5]));
}

// Each `what` is a fault that the emulation must report. In shared memory are two tiles, of zeros.
KERNEL(hopper_faults, Arguments, 160) {
    u8* tile = aligned_shared();
    u32* words = reinterpret_cast<u32*>(tile);
    SHARED(u64, barriers, 4);
    const u32 t = thread_index(), what = p.what;
    wait_for_predecessor();
    for (u32 i = t; i < 4 * TILE / 4; i += 160) words[i] = 0;
    if (what != 6) fence_async();
    if (t == 0) {
        init_barrier(barriers, 1);
        init_barrier(barriers + 1, 128);
        if (what == 21) init_barrier(barriers, 1);
        fence_barriers();
    }
    sync_block();
    u64 a = tile_descriptor(tile, 0, 1024);
    u64 b = tile_descriptor(tile + TILE, TILE, 1024);
    float d[64];
    for (float& sum : d) sum = 0;
    const u32 fragment[4] = {};
    switch (what) {
    case 0:  // A thread that does not come.
        if (t == 77 || t >= 128) return;
        break;
    case 1:
        if (t == 5) b += 2;
        break;
    case 7:  // The fence comes before the write, or another thread's after it.
    case 8:
        if (t == 9) words[0] = 0;
        if (t == 10) fence_async();
        if (what == 7) sync_block();
        break;
    case 9: a = tile_descriptor(tile + 256, 0, 1024); break;
    case 10: b = tile_descriptor(tile + TILE, 0, 0); break;
    case 11: b = tile_descriptor(tile + TILE, 0, 1024); break;
    case 12: b &= ~(u64(3) << 62); break;
    case 14:
        if (t == 3) wgmma_commit();
        break;
    case 39: b = tile_descriptor(tile + 47 * 1024, 0, 1024); break;
    default: break;
    }
    if (t < 128 && (what < 16 || what == 35 || what == 39)) {
        if (what != 2) wgmma_fence();
        what == 3 ? wgmma_bf16<128>(d, fragment, b)
        : what == 11 ? wgmma_bf16<128, true>(d, a, b)
                     : wgmma_bf16<128>(d, a, b);
        if (what == 3) {
            wgmma_commit();
            wgmma_bf16<128>(d, fragment, b);
        }
        if (what == 4 && t == 40) d[17] = 1;
        if (what == 15) wgmma_bf16<64>(*reinterpret_cast<float(*)[32]>(d), a, b);
        if (what == 5 && t == 70) words[TILE / 4] = 0;
        if (what == 13) return;
        wgmma_commit();
        if (what == 35 && t == 8) {
            wgmma_wait<1>();
        } else {
            wgmma_wait<0>();
        }
    }
    if (t == 128) {
        switch (what) {
        case 16: wait_barrier(barriers + 1, 0); break;
        case 17:
        case 18:
            if (what == 17) arrive_expect(barriers, 32);
            copy_bulk(tile, p.from, 16, barriers);
            if (what == 18) arrive(barriers);
            wait_barrier(barriers, 0);
            break;
        case 20: arrive(barriers + 2); break;
        case 22:
            barriers[0] = 1;
            arrive(barriers);
            break;
        case 24:
            arrive_expect(barriers, 16);
            copy_bulk(tile, p.from, 16, barriers);
            sink(p.to, words[2]);
            break;
        case 26: copy_tensor(tile + 512, p.a, 0, 0, barriers); break;
        case 27: copy_tensor(tile, *reinterpret_cast<const TensorMap*>(tile), 0, 0, barriers); break;
        case 32: copy_bulk(tile, p.from, 8, barriers); break;
        case 34: sink(p.to, *reinterpret_cast<u32*>(dynamic_shared())); break;
        case 36: copy_tensor(tile, p.a, 0, 0, barriers); break;
        case 38:
            words[1] = 1;
            copy_bulk(tile, p.from, 16, barriers);
            break;
        default: break;
        }
    }
    if (what == 19 && t < 2) arrive_expect(barriers, 16);
    if (what == 25) {  // A copy to where others read, which have told nobody.
        if (t < 32) sink(p.to, words[t]);
        if (t == 128) {
            wait_barrier(barriers + 1, 0);
            copy_bulk(tile, p.from, 128, barriers);
        } else if (t < 128) {
            if (t == 7) words[8192 / 4] = words[3];
            arrive(barriers + 1);
            if (t == 7) sink(p.to, words[3]);
        }
    }
    if (what == 28) sync_group(0, 32);
    if (what == 29 && t < 64) sync_group(1, t < 32 ? 64 : 96);
    if (what == 30 && t < 64) sync_group(3, 96);
    if (what == 31 && t % 32 < 16 && t < 64) sync_group(1, 32);
    if (what == 33 && t < 128) {  // Two groups that do not tell each other.
        words[t] = 1;
        sync_group(1 + t / 64, 64);
        sink(p.to, words[(t + 64) % 128]);
    }
    if (what == 37 && t < 128) {  // An arrival tells those alone who wait for it.
        if (t < 64) words[t] = 1;
        arrive(barriers + 1);
        if (t != 90) wait_barrier(barriers + 1, 0);
        if (t >= 64) sink(p.to, words[t - 64]);
    }
}
