// What a step tells the kernels, in device memory, rewritten before each step; and how activations are
// stored. Twins of the structs in src/cuda/step.rs.
#pragma once
#include "intrinsics.cuh"

// How many rows of each kind a step has; those of prompts come after the `decode_rows`. Grids are sized
// for a bucket: blocks of rows beyond these end at once.
struct Counts {
    u32 rows;
    u32 outputs;
    u32 sequences;
    u32 decode_rows;
};

// A token of the batch. `token` is an id, or PREVIOUS | i for what the step before sampled at output i.
struct Row {
    u32 token;
    u32 position;
    u32 sequence;
    u32 unused;
};
constexpr u32 PREVIOUS = 0x80000000u;

// A sequence's cache: its length with this step's tokens written, and where its blocks' ids start in
// `tables`. Its rows of the step: the first, and their number where they are a prompt's, else 0.
struct Sequence {
    u32 length;
    u32 table;
    u32 first;
    u32 prefill;
};

// How an output row's token is sampled: realm_core::sampling::Sampling.
struct Sampling {
    float temperature;
    u32 top_k;
    float top_p;
    float min_p;
    u32 seed_low;
    u32 seed_high;
    u32 position;
    u32 unused;
};

// Where a step's description lies.
struct StepView {
    const Counts* counts;
    const Row* rows;
    const Sequence* sequences;
    const u32* tables;
    const u32* outputs;
    const Sampling* sampling;
    const u32* previous;
};

// How rows of activations are stored.
enum Form : u32 {
    // f32, `stride` elements a row.
    FORM_F32 = 0,
    // bf16, a row a column of the product.
    FORM_BF16 = 1,
    // f16, a row a column of the product.
    FORM_F16 = 2,
    // Three bf16 columns a row, whose sum is the f32 value to its last bit but one: column 3 row + i.
    FORM_BF16X3 = 3,
    // Integers of -127..127 as bf16, and an f32 scale for each 32 of them.
    FORM_INT8 = 4,
};

// Activations in memory. All but FORM_F32 have a stride that is a multiple of 256, zeros from the last
// column to the stride: whoever writes a row writes those zeros, too.
struct Columns {
    void* data;
    // FORM_INT8: stride / 32 scales a row.
    float* scales;
    u32 form;
    u32 stride;
};

// Stores an element of any form but FORM_INT8.
DEVICE void store(const Columns& to, u32 row, u32 col, float value) {
    const size_t at = size_t(row) * to.stride + col;
    switch (to.form) {
    case FORM_F32:
        static_cast<float*>(to.data)[at] = value;
        break;
    case FORM_BF16:
        static_cast<u16*>(to.data)[at] = bf16_bits(value);
        break;
    case FORM_F16:
        static_cast<u16*>(to.data)[at] = f16_bits(value);
        break;
    case FORM_BF16X3: {
        u16* data = static_cast<u16*>(to.data) + size_t(row) * 3 * to.stride + col;
        for (int part = 0; part < 3; part++) {
            const u16 bits = bf16_bits(value);
            data[size_t(part) * to.stride] = bits;
            value -= bf16_value(bits);
        }
        break;
    }
    default:
        break;
    }
}

// Fills a row's elements from `col` to the stride with zeros: one thread's share of `threads`.
DEVICE void store_zeros(const Columns& to, u32 row, u32 cols, u32 thread, u32 threads) {
    if (to.form == FORM_F32) return;
    for (u32 col = cols + thread; col < to.stride; col += threads) store(to, row, col, 0.0f);
}
