// Products with one row, on tensor cores.
//
// A tile of columns has room for eight: column j takes the activations of a slice's groups j, 8 +
// j… and zeros for the k of the other groups. So one run of products leaves the results of eight
// groups side by side, and a lane has, for its two weight rows, the two groups that it scales: it
// decodes their scales itself, and adds a group's result once instead of eight times. Each result
// has the bits that it has in TensorRun.
#pragma once
#include "matvec_tensor.cuh"

template <class F, class In, bool INT8, class P = MatvecParams>
struct OneRowRun {
    static constexpr u32 K = Ring<F>::STAGE_K;
    static_assert(K == 256 && F::GROUP <= 32, "groups fill the columns");
    // Runs of eight groups; products of two steps in each; pairs of groups.
    static constexpr u32 RUNS = K / F::GROUP / 8;
    static constexpr u32 TURNS = 8 / RUNS;
    static constexpr u32 SCALES = Ring<F>::ACTIVATIONS + 2 * K;
    // Before the ring: zeros, then what Steps keeps.
    static constexpr u32 ZEROS = 16;

    Ring<F, P> ring;
    Steps<F, In> steps;
    // The lane's part of the next stage's activations, and of their scales.
    const u16* input;
    const float* input_scales;
    // A turn's matrices are two steps' halves. In one of a run's turns the row of a matrix that the
    // lane names is not of zeros: that turn, and where in a slot the row lies.
    u32 turn, operand;
    // The lane's share of the products of weight rows g and g + 8.
    float acc[2];

    DEVICE explicit OneRowRun(const P& p)
        : ring(p, ZEROS + Steps<F, In>::BYTES),
          steps(ring.start - Steps<F, In>::BYTES),
          input(nullptr),
          input_scales(nullptr),
          acc{} {
        const u32 column = lane() % 8, matrix = lane() / 8;
        if constexpr (F::GROUP == 32) {
            turn = column;
        } else {
            turn = column % 2 == matrix / 2 ? column / 2 : TURNS;
        }
        operand = Ring<F>::ACTIVATIONS + 64 * turn + 16 * matrix;
        if (lane() < ZEROS / 4) reinterpret_cast<u32*>(zeros())[lane()] = 0;
        sync_warp();
    }

    DEVICE u8* zeros() const { return ring.start - Steps<F, In>::BYTES - ZEROS; }

    DEVICE void set_rows(u32) {}

    DEVICE void begin(u32 first) {
        const Columns& from = ring.p.input;
        const u32 row = first_input_row(ring.p);
        input =
            static_cast<const u16*>(from.data) + size_t(row) * from.stride + first * K + 8 * lane();
        if constexpr (INT8) {
            input_scales =
                from.scales + (size_t(row) * from.stride + first * K) / INT8_GROUP + 4 * lane();
        }
    }

    DEVICE void copy_activations(u8* slot) {
        copy_async16_cached(slot + Ring<F>::ACTIVATIONS + 16 * lane(), input);
        input += K;
        if constexpr (INT8) {
            if (lane() < K / INT8_GROUP / 4)
                copy_async16_cached(slot + SCALES + 16 * lane(), input_scales);
            input_scales += K / INT8_GROUP;
        }
    }

    DEVICE void add_stage(const u8* slot, u32 stage) {
        const u8* planes = slot + Ring<F>::PLANES;
        const u32 tiles = ring.tiles(stage);
#pragma unroll
        for (u32 run = 0; run < RUNS; run++) {
            float product[4] = {}, sum[4] = {};
#pragma unroll
            for (u32 i = 0; i < TURNS; i += 2) {
                const u32 chunk = (TURNS * run + i) / 2;
                const typename F::Chunk weights(
                    planes + chunk * 64 / F::TILE_K * F::TILE_BYTES +
                        chunk % (F::TILE_K / 64) * F::Chunk::CHUNK_BYTES,
                    lane());
                add_turn(product, sum, weights, slot, run, i);
                add_turn(product, sum, weights, slot, run, i + 1);
            }
            const u32 pair = 4 * run + lane() % 4, tile = pair / F::PAIRS;
            const bool there = F::STAGE_TILES == 1 || tile < tiles;
            float factor[2] = {};
            if constexpr (INT8) {
                const float* scales = reinterpret_cast<const float*>(slot + SCALES);
                factor[0] = scales[2 * pair * F::GROUP / INT8_GROUP];
                factor[1] = scales[(2 * pair + 1) * F::GROUP / INT8_GROUP];
            }
#pragma unroll
            for (u32 row = 0; row < 2; row++) {
                float scale[2], min[2] = {};
                F::pair(planes + tile * F::TILE_BYTES, lane() / 4 + 8 * row, pair % F::PAIRS, scale,
                        min);
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    float of_sum = 0.0f;
                    if constexpr (F::HAS_MIN)
                        of_sum = there ? sum_factor<F, In>(scale[j], min[j]) : 0.0f;
                    acc[row] =
                        add_group<F, INT8>(acc[row], there ? scale[j] : 0.0f, of_sum,
                                           product[2 * row + j], sum[2 * row + j], factor[j]);
                }
            }
        }
    }

    // Two steps of a chunk.
    DEVICE void add_turn(float (&product)[4], float (&sum)[4], const typename F::Chunk& weights,
                         const u8* slot, u32 run, u32 at) const {
        u32 b[4];
        load_matrix_x4(b, turn == at ? slot + operand + 64 * TURNS * run : zeros());
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 a[4];
            fragment<F, In>(weights, (TURNS * run + at) % 2 * 2 + i, a);
            steps.add(product, sum, a, b[2 * i], b[2 * i + 1]);
        }
    }

    DEVICE void put_partial(u8* to) {
        float* sums = reinterpret_cast<float*>(to);
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            float total = acc[row];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            if (lane() % 4 == 0) sums[lane() / 4 + 8 * row] = total;
            acc[row] = 0.0f;
        }
    }
};
