// Products in f32 without tensor cores, for weights that are floats: weights and activations as
// they are.
#pragma once
#include "matvec.cuh"

template <class F, class P = MatvecParams>
struct PlainRun {
    // Rows of a group.
    static constexpr u32 ROWS = 8;
    static constexpr u32 K = F::TILE_K;

    Ring<F, P> ring;
    // The next stage's activations, and how many a row has from there on.
    const float* input;
    i32 left;
    u32 rows;
    // The lane's share of the products of weight rows g and g + 8 with each row.
    float acc[ROWS][2];

    DEVICE explicit PlainRun(const P& p)
        : ring(p, 0), input(nullptr), left(0), rows(0), acc{} {}

    DEVICE void set_rows(u32 count) { rows = count; }

    DEVICE void begin(u32 first) {
        const P& p = ring.p;
        input = static_cast<const float*>(p.input.data) +
                size_t(first_input_row(p)) * p.input.stride + first * K;
        left = i32(p.k - first * K);
    }

    // Rows have any length: zeros follow the last.
    DEVICE void copy_activations(u8* slot) {
        float* to = reinterpret_cast<float*>(slot + Ring<F>::ACTIVATIONS);
        for (u32 i = lane(); i < rows * K; i += 32) {
            const u32 row = i / K, k = i % K;
            if (i32(k) < left) {
                copy_async4(to + i, input + size_t(row) * ring.p.input.stride + k);
            } else {
                to[i] = 0.0f;
            }
        }
        input += K;
        left -= i32(K);
    }

    DEVICE void add_stage(const u8* slot, u32) {
        const typename F::Chunk chunk(slot + Ring<F>::PLANES, lane());
        const float* from =
            reinterpret_cast<const float*>(slot + Ring<F>::ACTIVATIONS) + lane() % 4 * 2;
#pragma unroll
        for (u32 step = 0; step < K / 16; step++) {
            // Rows g, g + 8 of k 2c and 2c + 1, then of k 2c + 8 and 2c + 9.
            float weight[8];
            F::values(chunk, step, weight);
#pragma unroll
            for (u32 row = 0; row < ROWS; row++) {
                if (row >= rows) break;
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const f32x2 x =
                        *reinterpret_cast<const f32x2*>(from + row * K + 16 * step + 8 * half);
#pragma unroll
                    for (u32 i = 0; i < 2; i++) {
                        acc[row][i] = fmaf(weight[4 * half + 2 * i], x.x, acc[row][i]);
                        acc[row][i] = fmaf(weight[4 * half + 2 * i + 1], x.y, acc[row][i]);
                    }
                }
            }
        }
    }

    DEVICE void put_partial(u8* to) {
        float* sums = reinterpret_cast<float*>(to);
#pragma unroll
        for (u32 row = 0; row < ROWS; row++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                float sum = acc[row][i];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                if (lane() % 4 == 0 && row < rows) sums[16 * row + lane() / 4 + 8 * i] = sum;
                acc[row][i] = 0.0f;
            }
        }
    }
};
