// Kernels that test the emulation itself.
#include "intrinsics.cuh"

struct Arguments {
    const u32* from;
    u32* to;
    u32 count;
    u32 what;
};

// to[i] = from[i], each by its own thread of a grid of any shape.
KERNEL(copy_words, Arguments, 1024) {
    wait_for_predecessor();
    const u32 block = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
    const u32 i = block * thread_count() + thread_index();
    if (i < p.count) p.to[i] = p.from[i];
}

// The order in which threads come: each takes a number.
KERNEL(take_numbers, Arguments, 1024) {
    wait_for_predecessor();
    p.to[block_x() * thread_count() + thread_index()] = atomic_add(p.to + p.count, 1u);
}

DEVICE u32 pair(const u16* from, u32 at) { return from[at] | u32(from[at + 1]) << 16; }

// from: a of 16x16, b as 8 columns of 16, both 16-bit; to: d of 16x8 in f32, which is added to.
// what: 0 for bf16, 1 for f16. A warp a block, each with its own three matrices.
KERNEL(products, Arguments, 32) {
    wait_for_predecessor();
    const u16* a = reinterpret_cast<const u16*>(p.from) + block_x() * 384;
    const u16* b = a + 256;
    float* to = reinterpret_cast<float*>(p.to) + block_x() * 128;
    const u32 g = lane() / 4, c = lane() % 4 * 2;
    const u32 fragment[4] = {pair(a, g * 16 + c), pair(a, (g + 8) * 16 + c),
                             pair(a, g * 16 + c + 8), pair(a, (g + 8) * 16 + c + 8)};
    const u32 b0 = pair(b, g * 16 + c), b1 = pair(b, g * 16 + c + 8);
    float d[4];
    for (u32 i = 0; i < 4; i++) d[i] = to[(g + i / 2 * 8) * 8 + c + i % 2];
    for (u32 i = 0; i < p.count; i++) {
        if (p.what == 0) {
            mma_bf16(d, fragment, b0, b1);
        } else {
            mma_f16(d, fragment, b0, b1);
        }
    }
    for (u32 i = 0; i < 4; i++) to[(g + i / 2 * 8) * 8 + c + i % 2] = d[i];
}

// from: 32 rows of 4 words; to: what each lane's registers are, x4, x4 trans, x2, x2 trans.
KERNEL(load_matrices, Arguments, 32) {
    SHARED(u32x4, rows, 32);
    wait_for_predecessor();
    rows[lane()] = reinterpret_cast<const u32x4*>(p.from)[lane()];
    sync_warp();
    u32 r[12];
    u32(&x4)[4] = *reinterpret_cast<u32(*)[4]>(r);
    u32(&x4_trans)[4] = *reinterpret_cast<u32(*)[4]>(r + 4);
    u32(&x2)[2] = *reinterpret_cast<u32(*)[2]>(r + 8);
    u32(&x2_trans)[2] = *reinterpret_cast<u32(*)[2]>(r + 10);
    load_matrix_x4(x4, rows + lane());
    load_matrix_x4_trans(x4_trans, rows + lane());
    // The other lanes' addresses do not count.
    const void* row = lane() < 16 ? rows + lane() : nullptr;
    load_matrix_x2(x2, row);
    load_matrix_x2_trans(x2_trans, row);
    for (u32 i = 0; i < 12; i++) p.to[lane() * 12 + i] = r[i];
}

// to: 24 words a lane; `count` is the lane, the mask, the distance.
KERNEL(shuffles, Arguments, 32) {
    wait_for_predecessor();
    u32* to = p.to + lane() * 24;
    const u64 wide = u64(lane()) << 32 | (lane() ^ 5);
    const u64 results[3] = {shuffle(wide, p.count), shuffle_xor(wide, p.count),
                            shuffle_down(wide, p.count)};
    const double doubles[3] = {shuffle(double(lane()), p.count),
                               shuffle_xor(double(lane()), p.count),
                               shuffle_down(double(lane()), p.count)};
    for (u32 i = 0; i < 3; i++) {
        to[i] = u32(results[i]);
        to[3 + i] = u32(results[i] >> 32);
        to[6 + i] = u32(doubles[i]);
    }
    to[9] = shuffle(lane(), p.count);
    to[10] = shuffle_xor(lane(), p.count);
    to[11] = shuffle_down(lane(), p.count);
    to[12] = u32(shuffle(float(lane()), p.count));
    to[13] = u32(shuffle_xor(float(lane()), p.count));
    to[14] = u32(shuffle_down(float(lane()), p.count));
    to[15] = u32(shuffle(-i32(lane()), p.count));
    to[16] = u32(shuffle_xor(-i32(lane()), p.count));
    to[17] = u32(shuffle_down(-i32(lane()), p.count));
    to[18] = ballot(lane() % 3 == 0);
    to[19] = any(lane() == p.count);
    to[20] = all(lane() < p.count);
    to[21] = any(lane() > 32);
    to[22] = all(lane() < 32);
    to[23] = shuffle(lane(), lane() + 33);
}

// What a thread sees of its copies as they land: 4 words before the waits, 4 after wait_async<1>, 4
// after wait_async<0>; then a neighbour's, after the barrier.
KERNEL(async_copies, Arguments, 128) {
    u32x4* first = reinterpret_cast<u32x4*>(dynamic_shared());
    SHARED(u32, second, 256);
    const u32 t = thread_index();
    const u32* from = p.from + t * 8;
    u32* to = p.to + t * 16;
    copy_async16(first + t, from);
    commit_async();
    copy_async8(second + 2 * t, from + 4);
    commit_async();
    copy_async16_stream(first + 128 + t, from);
    wait_for_predecessor();
    auto look = [&](u32 at) {
        to[at] = first[t].x;
        to[at + 1] = first[t].w;
        to[at + 2] = second[2 * t];
        to[at + 3] = first[128 + t].x;
    };
    look(0);
    wait_async<1>();
    look(4);
    wait_async<0>();
    look(8);
    sync_block();
    const u32 other = (t + 33) % 128;
    to[12] = first[other].y;
    to[13] = second[2 * other + 1];
    commit_async();
    wait_async<0>();
    to[14] = first[128 + t].z;
    to[15] = t;
}

// Two copies by a warp, one after the other: what each lane sees before and after it waits.
KERNEL(bulk_copies, Arguments, 32) {
    SHARED(u32, words, 64);
    SHARED(u64, arrival, 2);
    const u32 t = thread_index();
    if (t < 2) make_arrival(arrival + t);
    sync_warp();
    copy_bulk_stream(words, p.from, 128, arrival);
    wait_for_predecessor();
    p.to[4 * t] = words[32 + t];
    sync_warp();
    copy_bulk_stream(words + 32, p.from + 32, 128, arrival + 1);
    wait_arrival(arrival, 0);
    sync_warp();
    p.to[4 * t + 1] = words[t];
    sync_warp();
    copy_bulk_stream(words, p.from + 64, 128, arrival);
    wait_arrival(arrival, 1);
    wait_arrival(arrival + 1, 0);
    sync_warp();
    p.to[4 * t + 2] = words[31 - t];
    p.to[4 * t + 3] = words[32 + t];
}

// from: `count` words; to: six words for each.
KERNEL(numbers, Arguments, 256) {
    wait_for_predecessor();
    const u32 i = block_x() * thread_count() + thread_index();
    if (i >= p.count) return;
    const u32 word = p.from[i];
    u32* to = p.to + 6 * i;
    to[0] = f16_bits(bits_float(word)) | u32(bf16_bits(bits_float(word))) << 16;
    to[1] = float_bits(f16_value(u16(word)));
    to[2] = float_bits(bf16_value(u16(word)));
    to[3] = sub_bf16x2(word, word >> 16 | word << 16);
    to[4] = sub_f16x2(word, word >> 16 | word << 16);
    to[5] = byte_perm(word, ~word, 0x7351);
}

// Threads that write parts of the same words in turns, in order by the barriers of their warps and
// of the block: none of it a race. to: a sum for each thread.
KERNEL(neighbours, Arguments, 128) {
    SHARED(u8, bytes, 512);
    SHARED(u32, sums, 4);
    wait_for_predecessor();
    const u32 t = thread_index();
    u16* halves = reinterpret_cast<u16*>(bytes);
    u32* words = reinterpret_cast<u32*>(bytes);
    const u32 first = warp() * 128;
    for (u32 i = 0; i < 4; i++) bytes[first + i * 32 + lane()] = u8(t + i);
    sync_warp();
    u32 sum = halves[first / 2 + (lane() ^ 1)] + halves[first / 2 + 32 + lane()];
    sync_warp();
    bytes[first + lane() * 2 + 64] = 1;
    halves[first / 2 + lane()] = u16(sum);
    sync_warp();
    sum += words[first / 4 + (lane() ^ 3)];
    if (lane() == 0) sums[warp()] = 0;
    sync_block();
    atomic_add(sums + t % 4, sum);
    words[127 - t] = sum;
    sync_block();
    p.to[t] = words[t] + sums[t % 4];
}

DEVICE void sink(u32* to, u32 value) {
    if (value == 12345) *to = value;
}

template <int N>
__attribute__((noinline)) u32 deep(u32 n) {
    volatile u8 frame[N];
    frame[n % N] = u8(n);
    return n == 0 ? frame[0] : deep<N>(n - 1) + frame[n % N];
}

// Each `what` is a fault that the emulation must report. `from` and `to` have `count` words.
KERNEL(faults, Arguments, 128) {
    SHARED(u32, words, 128);
    const u32 t = thread_index();
    if (p.what == 0) return;
    if (p.what == 1) p.to[t] = 1;
    wait_for_predecessor();
    words[t] = t;
    fence_async();
    sync_block();
    switch (p.what) {
    case 2:  // Threads end where others wait.
        if (t == 77) return;
        sync_block();
        break;
    case 3:  // A lane ends where its warp waits.
        if (t == 40) return;
        sink(p.to, shuffle(t, 0));
        break;
    case 4:  // A lane waits for the block, the others for the warp.
        if (t == 9) {
            sync_block();
        } else {
            sync_warp();
        }
        break;
    case 5:  // Two operations of a warp at once.
        sink(p.to, t % 2 ? ballot(true) : shuffle(t, 0));
        break;
    case 6: copy_async16(words + t / 4 * 4, p.from + p.count + 8); break;
    case 7: copy_async16(words + t / 4 * 4, p.from + 1); break;
    case 8: copy_async4(p.to + t, p.from + t); break;
    case 9: sink(p.to, p.from[t == 5 ? p.count : 0]); break;
    case 10:
        if (t == 6) p.to[p.count] = 0;
        break;
    case 11: {  // Beyond a shared array, where the compiler does not see it.
        u32* far = words + (t == 7 ? 128 + p.count % 2 : 0);
        sink(p.to, *far);
        break;
    }
    case 12:  // No barrier between a write and a read.
        words[t] = t + 1;
        sink(p.to, words[(t + 1) % 128]);
        break;
    case 13:  // No barrier between a read and a write.
        sink(p.to, words[(t + 64) % 128]);
        words[t] = t + 1;
        break;
    case 14:
        sink(p.to, *reinterpret_cast<const u32*>(reinterpret_cast<const u8*>(p.from) + 2));
        break;
    case 15: sink(p.to, words[t + p.count]); break;
    case 16: sink(p.to, t / (p.count & 1)); break;
    case 17: sink(p.to, t << p.count); break;
    case 18: sink(p.to, shuffle_xor(t, 32)); break;
    case 19: sink(p.to, deep<1000>(p.count * 100)); break;
    case 20:  // Memory that the stream's host part has given back.
        sink(p.to, load_stream16(p.from).x);
        break;
    case 21: {  // The end of a copy that others read meanwhile.
        copy_async4(words + t, p.from);
        commit_async();
        if (t == 3) sink(p.to, words[4]);
        wait_async<0>();
        break;
    }
    case 22: atomic_add(p.to + p.count, 1u); break;
    case 23:
    case 24:
    case 25:
    case 26: {  // A copy by a warp that nobody waits for, that is waited for twice, that lanes ask
                // for in different ways, that lanes read which have not waited for it.
        SHARED(u64, arrival, 1);
        if (t >= 32) break;
        if (t == 0) make_arrival(arrival);
        sync_warp();
        copy_bulk_stream(words, p.from, p.what == 25 ? 16 + t / 31 * 16 : 16, arrival);
        if (p.what == 23) break;
        wait_arrival(arrival, 0);
        sync_warp();
        if (p.what == 24) wait_arrival(arrival, 1);
        copy_bulk_stream(words, p.from, 16, arrival);
        if (t != 9) wait_arrival(arrival, 1);
        sink(p.to, words[0]);
        break;
    }
    default: break;
    }
}

// For timing: 256 threads that do next to nothing, and a warp that does `count` products.
KERNEL(nothing, Arguments, 256) {
    wait_for_predecessor();
    sync_block();
    if (thread_index() == 0) p.to[block_x()] = 1;
}
