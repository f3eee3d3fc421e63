// Rows of f32 in, rows of any form out: what the elementwise kernels share.
#pragma once
#include "step.cuh"

constexpr u32 THREADS = 256;
// Columns that a block of an op without sums takes.
constexpr u32 SHARE = 4 * THREADS;

// WIDTH neighbours, moved at once. Where WIDTH divides the columns of plain rows, they are aligned to it.
template <int WIDTH>
struct Pack {
    static constexpr int width = WIDTH;
    float v[WIDTH];
};

template <int WIDTH>
DEVICE Pack<WIDTH> load(const float* row, u32 col) {
    if constexpr (WIDTH == 4) {
        const f32x4 x = *reinterpret_cast<const f32x4*>(row + col);
        return {{x.x, x.y, x.z, x.w}};
    } else {
        return {{row[col]}};
    }
}

DEVICE void store(const Columns& to, u32 row, u32 col, const Pack<1>& x) {
    store(to, row, col, x.v[0]);
}

// Four elements of any form but FORM_INT8.
DEVICE void store(const Columns& to, u32 row, u32 col, const Pack<4>& x) {
    const size_t at = size_t(row) * to.stride + col;
    switch (to.form) {
    case FORM_F32:
        *reinterpret_cast<f32x4*>(static_cast<float*>(to.data) + at) = {x.v[0], x.v[1], x.v[2],
                                                                        x.v[3]};
        break;
    case FORM_BF16:
        *reinterpret_cast<u32x2*>(static_cast<u16*>(to.data) + at) = {pack_bf16(x.v[0], x.v[1]),
                                                                      pack_bf16(x.v[2], x.v[3])};
        break;
    case FORM_F16:
        *reinterpret_cast<u32x2*>(static_cast<u16*>(to.data) + at) = {pack_f16(x.v[0], x.v[1]),
                                                                      pack_f16(x.v[2], x.v[3])};
        break;
    case FORM_BF16X3: {
        u16* data = static_cast<u16*>(to.data) + size_t(row) * 3 * to.stride + col;
        Pack<4> rest = x;
        for (int part = 0; part < 3; part++) {
            const u32x2 bits = {pack_bf16(rest.v[0], rest.v[1]), pack_bf16(rest.v[2], rest.v[3])};
            *reinterpret_cast<u32x2*>(data + size_t(part) * to.stride) = bits;
            rest.v[0] -= bf16_value(u16(bits.x));
            rest.v[1] -= bf16_value(u16(bits.x >> 16));
            rest.v[2] -= bf16_value(u16(bits.y));
            rest.v[3] -= bf16_value(u16(bits.y >> 16));
        }
        break;
    }
    default:
        break;
    }
}

// From rows of `cols` f32 to a target, as many rows as `count` says.
struct Map {
    const float* input;
    const u32* count;
    Columns target;
    u32 cols;
    // Of `prepare`: rows for each that *count counts. Else 1.
    u32 slots;

    DEVICE const float* row(u32 row) const { return input + size_t(row) * cols; }
};

// The block's row, or false where the step has no such row: it has `slots` for each that *count
// counts. How many it has was written before the step began, so that it can be read before the kernel
// waits.
DEVICE bool begin(const u32* count, u32& row, u32 slots = 1) {
    let_successor_start();
    const u32 rows = *count * slots;
    wait_for_predecessor();
    row = block_x();
    return row < rows;
}

// Stores f(pack, col), where `pack` only says how wide the result is, for the block's share of a row's
// columns, and zeros beyond them.
template <int WIDTH, class F>
DEVICE void store_share(const Map& map, u32 row, F f) {
    for (u32 i = 0; i < 4; i += WIDTH) {
        const u32 col = block_y() * SHARE + i * THREADS + thread_index() * WIDTH;
        if (col < map.cols) {
            store(map.target, row, col, f(Pack<WIDTH>{}, col));
        } else if (map.target.form != FORM_F32 && col < map.target.stride) {
            store(map.target, row, col, Pack<WIDTH>{});
        }
    }
}

template <class F>
DEVICE void store_share(const Map& map, u32 row, F f) {
    if (map.cols % 4 == 0) {
        store_share<4>(map, row, f);
    } else {
        store_share<1>(map, row, f);
    }
}

// Stores f of each element, in the block's share of its row, where the step has such a row.
template <class F>
DEVICE void store_each(const Map& map, F f) {
    u32 row;
    if (!begin(map.count, row)) return;
    const float* input = map.row(row);
    store_share(map, row, [&](auto pack, u32 col) {
        constexpr int WIDTH = decltype(pack)::width;
        Pack<WIDTH> x = load<WIDTH>(input, col);
        for (int e = 0; e < WIDTH; e++) x.v[e] = f(x.v[e]);
        return x;
    });
}

// The same of each element and that of `others`, rows of as many columns.
template <class F>
DEVICE void store_each(const Map& map, const float* others, F f) {
    u32 row;
    if (!begin(map.count, row)) return;
    const float* input = map.row(row);
    const float* other = others + size_t(row) * map.cols;
    store_share(map, row, [&](auto pack, u32 col) {
        constexpr int WIDTH = decltype(pack)::width;
        Pack<WIDTH> x = load<WIDTH>(input, col);
        const Pack<WIDTH> y = load<WIDTH>(other, col);
        for (int e = 0; e < WIDTH; e++) x.v[e] = f(x.v[e], y.v[e]);
        return x;
    });
}

// The sum over a team: a warp, or the block, which then uses `partial`, a float a warp. In an order that
// only the team's size decides.
template <u32 TEAM>
DEVICE float team_sum(float value, float* partial) {
    for (u32 mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    if constexpr (TEAM > 32) {
        if (lane() == 0) partial[warp()] = value;
        sync_block();
        value = 0.0f;
        for (u32 i = 0; i < TEAM / 32; i++) value += partial[i];
    }
    return value;
}
