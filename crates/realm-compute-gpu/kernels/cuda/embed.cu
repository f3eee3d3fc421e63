// Rows of a table by token id, decoded from its planes: a kernel for each format.
#include "formats.cuh"
#include "step.cuh"

struct EmbedParams {
    const u8* planes;
    StepView view;
    Columns target;
    // Rows and columns of the table.
    u32 vocabulary;
    u32 cols;
};

constexpr u32 THREADS = 128;

// Row `row` of a tile, k 16 i + 2 c + {0, 8, 1, 9} of a chunk to values 4 i + {0, 1, 2, 3}.
template <class F>
DEVICE void decode(const u8* tile, u32 chunk, u32 row, u32 c, float (&value)[16]) {
    const typename F::Chunk packed(tile + chunk * F::Chunk::CHUNK_BYTES, row % 8 * 4 + c);
    const bool lower = row >= 8;
    if constexpr (F::FLOAT) {
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            float v[8];
            F::values(packed, step, v);
            value[4 * step] = lower ? v[2] : v[0];
            value[4 * step + 1] = lower ? v[6] : v[4];
            value[4 * step + 2] = lower ? v[3] : v[1];
            value[4 * step + 3] = lower ? v[7] : v[5];
        }
    } else {
        // Pairs of groups in a chunk; groups of 64 are half of one.
        constexpr u32 PAIRS = F::GROUP < 64 ? 32 / F::GROUP : 1;
        float scales[PAIRS][2], mins[PAIRS][2] = {};
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++)
            F::pair(tile, row, chunk * 32 / F::GROUP + i, scales[i], mins[i]);
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            u32 forms[4];
            F::forms(packed, step, forms);
            // The field ends at bit 6, signed ones at bit 7.
            constexpr u32 PLACE = F::BITS == 8 ? 0 : 7 - F::BITS;
            const u32 form = forms[lower] >> PLACE & four_times((1u << F::BITS) - 1);
            constexpr u32 GROUP = F::GROUP < 64 ? F::GROUP : 64;
            const float scale = scales[16 * step / GROUP / 2][16 * step / GROUP % 2];
            const float min = mins[16 * step / GROUP / 2][16 * step / GROUP % 2];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float v = scale * float(i32(form >> (8 * i) & 0xff) - i32(F::ZERO));
                if constexpr (F::HAS_MIN) v -= min;
                value[4 * step + i] = v;
            }
        }
    }
}

template <class F>
DEVICE void embed(const EmbedParams& p) {
    wait_for_predecessor();
    let_successor_start();
    const u32 row = block_y(), cols = p.cols;
    if (row >= p.view.counts->rows) return;
    u32 token = p.view.rows[row].token;
    if (token & PREVIOUS) token = p.view.previous[token & ~PREVIOUS];

    // A thread has a quarter of a chunk.
    const u32 at = block_x() * THREADS + thread_index(), first = at / 4 * 64, c = at % 4;
    const u32 tiles = (cols + F::TILE_K - 1) / F::TILE_K;
    if (first < cols) {
        float value[16];
        if (token < p.vocabulary) {
            const size_t tile = size_t(token / 16) * tiles + first / F::TILE_K;
            decode<F>(p.planes + tile * F::TILE_BYTES, first % F::TILE_K / 64, token % 16, c,
                      value);
        }
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            const u32 col = first + i / 4 * 16 + 2 * c + i % 2 * 8 + i / 2 % 2;
            const float v = token < p.vocabulary ? value[i] : bits_float(0x7fffffff);
            if (col < cols) store(p.target, row, col, v);
        }
    }
    if (block_x() == 0) store_zeros(p.target, row, cols, thread_index(), thread_count());
}

#define EMBED(format) \
    KERNEL(embed_##format, EmbedParams, THREADS) { embed<formats::format>(p); }
EMBED(f32)
EMBED(f16)
EMBED(bf16)
EMBED(q4_0)
EMBED(q4_1)
EMBED(q5_0)
EMBED(q5_1)
EMBED(q8_0)
EMBED(q2_k)
EMBED(q3_k)
EMBED(q4_k)
EMBED(q5_k)
EMBED(q6_k)
EMBED(q8_k)
EMBED(iq4_nl)
EMBED(iq4_xs)
