// Products on tensor cores.
//
// Integers become fragments exactly. A group's product with the activations is summed from zero, in
// f32, then scaled and added to the slice's sum:
//     acc += scale · Σ (BIAS + q) x − (minimum + BIAS scale) · Σ x,
// where the sum of x is a product with ones. A format without a minimum adds the product with
// −(BIAS + ZERO) to the group's instead. So weights are never rounded.
//
// Of each eight groups of a slice, the first two are added to one sum, the next two to another and
// so on; at the slice's end the four are added in pairs. That is the order in which OneRowRun adds.
#pragma once
#include "matvec.cuh"
#include "scales.cuh"

// Activations of FORM_INT8 that share a scale.
constexpr u32 INT8_GROUP = 32;

// What is too much in a product with a format's fields, for each unit of the activations' sum.
template <class F, class In>
DEVICE constexpr u32 excess() {
    if constexpr (F::FLOAT) {
        return 0;
    } else {
        constexpr u32 BIAS = In::template BIAS<F::BITS>;
        // Without a bias, bytes were made signed.
        return BIAS == 0 ? 0 : BIAS + F::ZERO;
    }
}

// Adds the product of a step. The sum of the activations, or what is too much, is a product, too,
// with a matrix of one constant.
template <class F, class In>
struct Steps {
    static constexpr bool NEEDED = F::FLOAT ? false : F::HAS_MIN || excess<F, In>() != 0;
    // Bytes of a warp's shared memory.
    static constexpr u32 BYTES = F::FLOAT ? 0 : 16;
    u32 constant[4];

    // Through memory at `room`: of a constant that the compiler knows it makes four copies for each
    // product.
    DEVICE explicit Steps(u8* room) : constant{} {
        if constexpr (NEEDED) {
            constexpr u32 VALUE =
                F::HAS_MIN ? twice(In::integer(1)) : twice(In::integer(excess<F, In>()) | 0x8000);
            if (lane() < 4) reinterpret_cast<u32*>(room)[lane()] = VALUE;
            sync_warp();
            const u32x4 v = *reinterpret_cast<const u32x4*>(room);
            constant[0] = v.x, constant[1] = v.y, constant[2] = v.z, constant[3] = v.w;
        }
    }

    // `sum` gets the sums of the activations where the format has minima; where it has none,
    // `product` is rid of the excess.
    DEVICE void add(float (&product)[4], float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) const {
        In::mma(product, a, b0, b1);
        if constexpr (NEEDED) {
            if constexpr (F::HAS_MIN) {
                In::mma(sum, constant, b0, b1);
            } else {
                In::mma(product, constant, b0, b1);
            }
        }
    }
};

// Adds a group's product and sum to a sum of groups; `factor` is the activations' scale where they
// have one.
template <class F, bool INT8>
DEVICE float add_group(float to, float scale, float min, float product, float sum, float factor) {
    if constexpr (INT8) {
        float value = scale * product;
        if constexpr (F::HAS_MIN) value = fmaf(min, sum, value);
        return fmaf(factor, value, to);
    } else {
        to = fmaf(scale, product, to);
        if constexpr (F::HAS_MIN) to = fmaf(min, sum, to);
        return to;
    }
}

// Sums to which groups are added in turn. Products without scales of so few k need one.
template <class F>
constexpr u32 sums_of_groups() {
    if constexpr (F::FLOAT) {
        return 1;
    } else {
        return F::GROUP > INT8_GROUP ? 1 : 4;
    }
}

// In: what the product is computed in; N: tiles of 8 columns; INT8: whether the activations have
// scales; P: the kernel's parameters.
template <class F, class In, u32 N, bool INT8, class P = MatvecParams>
struct TensorRun {
    using Table = Scales<F, In>;
    static constexpr u32 K = Ring<F>::STAGE_K;
    // A column of a slot: its activations, its scales, and what makes its 16 byte units odd in
    // number, so that the same unit of eight columns lies in different banks.
    static constexpr u32 SCALES = 2 * K;
    static constexpr u32 COLUMN_BYTES = ((SCALES + (INT8 ? K / INT8_GROUP * 4 : 0)) / 16 | 1) * 16;

    // Before the ring: the table of scales, then what Steps keeps.
    Ring<F, P> ring;
    Steps<F, In> steps;
    float* table;
    // The lane's part of the next stage's first column.
    const u16* input;
    u32 stage;
    u32 columns;
    // Where in a slot the lane finds its row of the first two steps' matrices.
    u32 operand[N];
    static constexpr u32 SUMS = sums_of_groups<F>();
    float acc[N][SUMS][4];

    DEVICE explicit TensorRun(const P& p)
        : ring(p, Table::BYTES + Steps<F, In>::BYTES),
          steps(ring.start - Steps<F, In>::BYTES),
          input(nullptr),
          stage(0),
          columns(0),
          operand{},
          acc{} {
        table = reinterpret_cast<float*>(ring.start - Steps<F, In>::BYTES - Table::BYTES);
    }

    DEVICE u32 first_column() const { return first_input_row(ring.p) * ring.p.row_columns; }

    DEVICE void set_rows(u32 rows) {
        const P& p = ring.p;
        columns = rows * p.row_columns;
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            operand[n] =
                Ring<F>::ACTIVATIONS + valid(8 * n + lane() % 8) * COLUMN_BYTES + lane() / 8 * 16;
        }
    }

    // A column that stands for this one: itself, or the last that there is.
    DEVICE u32 valid(u32 column) const { return min(column, columns - 1); }

    // A column's lanes, which have 8 elements each, and the columns of a warp.
    static constexpr u32 LANES = K < 256 ? K / 8 : 32;
    static constexpr u32 COLUMNS = 32 / LANES;

    DEVICE void begin(u32 first) {
        const P& p = ring.p;
        const u32 column = first_column() + lane() / LANES;
        input = static_cast<const u16*>(p.input.data) + size_t(column) * p.input.stride +
                first * K + 8 * (lane() % LANES);
        stage = first;
    }

    DEVICE void copy_activations(u8* slot) {
        const u32 stride = ring.p.input.stride;
        u8* to =
            slot + Ring<F>::ACTIVATIONS + lane() / LANES * COLUMN_BYTES + 16 * (lane() % LANES);
        if (COLUMNS == 1 || lane() / LANES < columns) copy_async16_cached(to, input);
#pragma unroll 1
        for (u32 column = COLUMNS; column < columns; column += COLUMNS) {
            if (COLUMNS == 1 || column + lane() / LANES < columns) {
                copy_async16_cached(to + column * COLUMN_BYTES, input + size_t(column) * stride);
            }
        }
        input += K;
        if constexpr (INT8) {
            constexpr u32 UNITS = K / INT8_GROUP / 4;
            const float* scales =
                ring.p.input.scales + (size_t(first_column()) * stride + stage * K) / INT8_GROUP;
#pragma unroll 1
            for (u32 i = lane(); i < columns * UNITS; i += 32) {
                const u32 column = i / UNITS, unit = i % UNITS;
                copy_async16_cached(
                    slot + Ring<F>::ACTIVATIONS + column * COLUMN_BYTES + SCALES + 16 * unit,
                    scales + size_t(column) * (stride / INT8_GROUP) + 4 * unit);
            }
            stage++;
        }
    }

    DEVICE void add_stage(const u8* slot, u32 at) {
        if constexpr (!F::FLOAT) {
            Table::decode(table, slot + Ring<F>::PLANES, ring.tiles(at));
            sync_warp();
        }
#pragma unroll
        for (u32 chunk = 0; chunk < K / 64; chunk++) {
            constexpr u32 CHUNKS = F::TILE_K / 64;
            const u8* weights = slot + Ring<F>::PLANES + chunk / CHUNKS * F::TILE_BYTES +
                                chunk % CHUNKS * F::Chunk::CHUNK_BYTES;
            add_chunk(typename F::Chunk(weights, lane()), slot, chunk);
        }
    }

    DEVICE void add_chunk(const typename F::Chunk& weights, const u8* slot, u32 chunk) {
        // Two registers a step.
        u32 b[N][8];
#pragma unroll
        for (u32 n = 0; n < N; n++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 r[4];
                load_matrix_x4(r, slot + operand[n] + 128 * chunk + 64 * half);
#pragma unroll
                for (u32 i = 0; i < 4; i++) b[n][4 * half + i] = r[i];
            }
        }
        if constexpr (F::FLOAT) {
            float product[N][4] = {}, sum[N][4] = {};
            multiply<0, 4>(weights, b, product, sum);
#pragma unroll
            for (u32 n = 0; n < N; n++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) acc[n][0][i] += product[n][i];
            }
        } else {
            float low[Table::CHUNK], high[Table::CHUNK], factor[N][4] = {};
            const float* from = table + Table::ROW * (lane() / 4) + Table::CHUNK * chunk;
            load_floats(from, low);
            load_floats(from + 8 * Table::ROW, high);
            if constexpr (INT8) load_factors(slot + Ring<F>::ACTIVATIONS + SCALES, chunk, factor);
            add_groups<0>(weights, b, low, high, factor, chunk);
        }
    }

    // The two scales in a chunk of the lane's columns 2c, then 2c + 1.
    DEVICE void load_factors(const u8* scales, u32 chunk, float (&factor)[N][4]) const {
#pragma unroll
        for (u32 n = 0; n < N; n++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                float both[2];
                const u8* column = scales + valid(8 * n + lane() % 4 * 2 + i) * COLUMN_BYTES;
                load_floats(reinterpret_cast<const float*>(column) + 2 * chunk, both);
                factor[n][2 * i] = both[0];
                factor[n][2 * i + 1] = both[1];
            }
        }
    }

    // The groups of a chunk from k AT on. `low` and `high`: the table's values for the lane's two
    // rows.
    template <u32 AT, u32 COUNT>
    DEVICE void add_groups(const typename F::Chunk& weights, const u32 (&b)[N][8],
                           const float (&low)[COUNT], const float (&high)[COUNT],
                           const float (&factor)[N][4], u32 chunk) {
        constexpr u32 GROUP = INT8 && F::GROUP > INT8_GROUP ? INT8_GROUP : F::GROUP;
        constexpr u32 I = AT / F::GROUP * Table::WIDTH, MIN = F::HAS_MIN ? I + 1 : I;
        const u32 sums = SUMS == 1 ? 0 : (64 * chunk + AT) / F::GROUP % 8 / 2;
        float product[N][4] = {}, sum[N][4] = {};
        multiply<AT / 16, GROUP / 16>(weights, b, product, sum);
#pragma unroll
        for (u32 n = 0; n < N; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float (&row)[COUNT] = i < 2 ? low : high;
                float& to = acc[n][sums][i];
                const float scale = factor[n][i % 2 * 2 + AT / INT8_GROUP];
                to = add_group<F, INT8>(to, row[I], row[MIN], product[n][i], sum[n][i], scale);
            }
        }
        if constexpr (AT + GROUP < 64) add_groups<AT + GROUP>(weights, b, low, high, factor, chunk);
    }

    // STEPS products of 16 k, from step FIRST of a chunk on.
    template <u32 FIRST, u32 STEPS>
    DEVICE void multiply(const typename F::Chunk& weights, const u32 (&b)[N][8],
                         float (&product)[N][4], float (&sum)[N][4]) const {
#pragma unroll
        for (u32 step = FIRST; step < FIRST + STEPS; step++) {
            u32 a[4];
            fragment<F, In>(weights, step, a);
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                steps.add(product[n], sum[n], a, b[n][2 * step], b[n][2 * step + 1]);
            }
        }
    }

    DEVICE void put_partial(u8* to) {
        float* sums = reinterpret_cast<float*>(to);
#pragma unroll
        for (u32 n = 0; n < N; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 column = 8 * n + lane() % 4 * 2 + i % 2;
                float sum = acc[n][0][i];
                if constexpr (SUMS == 4) sum = (sum + acc[n][1][i]) + (acc[n][2][i] + acc[n][3][i]);
                if (column < columns) sums[16 * column + lane() / 4 + i / 2 * 8] = sum;
#pragma unroll
                for (u32 j = 0; j < SUMS; j++) acc[n][j][i] = 0.0f;
            }
        }
    }
};
