// Norms, gated activations, sums, scalings, gathers, and the conversion to what a product reads. Results
// are stored in the form that their reader wants.
#include "activation.cuh"
#include "elementwise.cuh"

// Threads that norm a row together.
constexpr u32 NORM_THREADS = 512;
// Packs a thread keeps in registers: rows of 6144 columns are read once.
constexpr u32 KEPT = 3;

struct RmsNormParams {
    Map map;
    // A second target, or one without data.
    Columns second;
    // Added to the input before the norm, or null; `sum` gets the sums.
    const float* addend;
    float* sum;
    const float* weight;
    float epsilon;
    // Elements normed together.
    u32 group;
};

// A team of threads norms the group that starts at column `first` of the block's row.
template <int WIDTH, u32 TEAM>
DEVICE void rms_norm_group(const RmsNormParams& p, u32 first, u32 member) {
    SHARED(float, partial, NORM_THREADS / 32);
    const u32 packs = p.group / WIDTH;
    Pack<WIDTH> weight[KEPT], x[KEPT];
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 at = i * TEAM + member;
        if (at < packs) weight[i] = load<WIDTH>(p.weight, at * WIDTH);
    }
    u32 row;
    if (!begin(p.map.count, row)) return;

    const size_t start = size_t(row) * p.map.cols + first;
    const float* input = p.map.input + start;
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 at = i * TEAM + member;
        if (at < packs) x[i] = load<WIDTH>(input, at * WIDTH);
    }
    // Past the addition, and past the registers, the row is `values`.
    const float* values = input;
    if (p.addend) {
        values = p.sum + start;
        Pack<WIDTH> addend[KEPT];
#pragma unroll
        for (u32 i = 0; i < KEPT; i++) {
            const u32 at = i * TEAM + member;
            if (at < packs) addend[i] = load<WIDTH>(p.addend + start, at * WIDTH);
        }
        const Columns sum = {p.sum + start, nullptr, FORM_F32, 0};
#pragma unroll
        for (u32 i = 0; i < KEPT; i++) {
            const u32 at = i * TEAM + member;
            for (int e = 0; e < WIDTH; e++) x[i].v[e] += addend[i].v[e];
            if (at < packs) store(sum, 0, at * WIDTH, x[i]);
        }
        for (u32 at = KEPT * TEAM + member; at < packs; at += TEAM) {
            Pack<WIDTH> y = load<WIDTH>(input, at * WIDTH);
            const Pack<WIDTH> z = load<WIDTH>(p.addend + start, at * WIDTH);
            for (int e = 0; e < WIDTH; e++) y.v[e] += z.v[e];
            store(sum, 0, at * WIDTH, y);
        }
    }

    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        if (i * TEAM + member >= packs) continue;
        for (int e = 0; e < WIDTH; e++) squares = fmaf(x[i].v[e], x[i].v[e], squares);
    }
    for (u32 at = KEPT * TEAM + member; at < packs; at += TEAM) {
        const Pack<WIDTH> y = load<WIDTH>(values, at * WIDTH);
        for (int e = 0; e < WIDTH; e++) squares = fmaf(y.v[e], y.v[e], squares);
    }
    const float mean = team_sum<TEAM>(squares, partial) / float(p.group);
    const float factor = 1.0f / sqrtf(mean + p.epsilon);

    const auto finish = [&](u32 at, Pack<WIDTH> y, const Pack<WIDTH>& w) {
        for (int e = 0; e < WIDTH; e++) y.v[e] = y.v[e] * factor * w.v[e];
        store(p.map.target, row, first + at * WIDTH, y);
        if (p.second.data) store(p.second, row, first + at * WIDTH, y);
    };
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 at = i * TEAM + member;
        if (at < packs) finish(at, x[i], weight[i]);
    }
    for (u32 at = KEPT * TEAM + member; at < packs; at += TEAM) {
        finish(at, load<WIDTH>(values, at * WIDTH), load<WIDTH>(p.weight, at * WIDTH));
    }
    if (first + p.group == p.map.cols) {
        store_zeros(p.map.target, row, p.map.cols, member, TEAM);
        if (p.second.data) store_zeros(p.second, row, p.map.cols, member, TEAM);
    }
}

// A row is one group: a block norms it.
KERNEL(rms_norm, RmsNormParams, NORM_THREADS) {
    if (p.group % 4 == 0) {
        rms_norm_group<4, NORM_THREADS>(p, 0, thread_index());
    } else {
        rms_norm_group<1, NORM_THREADS>(p, 0, thread_index());
    }
}

// A row is several groups: a warp norms one.
KERNEL(rms_norm_groups, RmsNormParams, THREADS) {
    const u32 first = (block_y() * (THREADS / 32) + warp()) * p.group;
    if (first >= p.map.cols) {
        wait_for_predecessor();
        return;
    }
    if (p.group % 4 == 0) {
        rms_norm_group<4, 32>(p, first, lane());
    } else {
        rms_norm_group<1, 32>(p, first, lane());
    }
}

struct LayerNormParams {
    Map map;
    const float* weight;
    // Or null.
    const float* bias;
    float epsilon;
    u32 unused;
};

template <int WIDTH>
DEVICE void layer_norm_row(const LayerNormParams& p) {
    SHARED(float, sums, NORM_THREADS / 32);
    SHARED(float, squares, NORM_THREADS / 32);
    const u32 packs = p.map.cols / WIDTH;
    u32 row;
    if (!begin(p.map.count, row)) return;

    const float* input = p.map.row(row);
    Pack<WIDTH> x[KEPT];
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 at = i * NORM_THREADS + thread_index();
        if (at < packs) x[i] = load<WIDTH>(input, at * WIDTH);
    }
    // The sum of f(x) over the row.
    const auto total = [&](float* partial, auto f) {
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < KEPT; i++) {
            if (i * NORM_THREADS + thread_index() >= packs) continue;
            for (int e = 0; e < WIDTH; e++) sum += f(x[i].v[e]);
        }
        for (u32 at = KEPT * NORM_THREADS + thread_index(); at < packs; at += NORM_THREADS) {
            const Pack<WIDTH> y = load<WIDTH>(input, at * WIDTH);
            for (int e = 0; e < WIDTH; e++) sum += f(y.v[e]);
        }
        return team_sum<NORM_THREADS>(sum, partial);
    };
    const float mean = total(sums, [](float v) { return v; }) / float(p.map.cols);
    const auto square = [&](float v) { return (v - mean) * (v - mean); };
    const float variance = total(squares, square) / float(p.map.cols);
    const float factor = 1.0f / sqrtf(variance + p.epsilon);

    const auto finish = [&](u32 at, Pack<WIDTH> y) {
        const Pack<WIDTH> w = load<WIDTH>(p.weight, at * WIDTH);
        const Pack<WIDTH> b = p.bias ? load<WIDTH>(p.bias, at * WIDTH) : Pack<WIDTH>{};
        for (int e = 0; e < WIDTH; e++) y.v[e] = fmaf((y.v[e] - mean) * factor, w.v[e], b.v[e]);
        store(p.map.target, row, at * WIDTH, y);
    };
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 at = i * NORM_THREADS + thread_index();
        if (at < packs) finish(at, x[i]);
    }
    for (u32 at = KEPT * NORM_THREADS + thread_index(); at < packs; at += NORM_THREADS) {
        finish(at, load<WIDTH>(input, at * WIDTH));
    }
    store_zeros(p.map.target, row, p.map.cols, thread_index(), NORM_THREADS);
}

KERNEL(layer_norm, LayerNormParams, NORM_THREADS) {
    if (p.map.cols % 4 == 0) {
        layer_norm_row<4>(p);
    } else {
        layer_norm_row<1>(p);
    }
}

struct GluParams {
    Map map;
    const float* up;
    u32 activation;
    u32 unused;
};

KERNEL(glu, GluParams, THREADS) {
    store_each(p.map, p.up, [&](float gate, float up) { return activate(p.activation, gate) * up; });
}

struct AddParams {
    Map map;
    const float* right;
};

KERNEL(add, AddParams, THREADS) {
    store_each(p.map, p.right, [](float left, float right) { return left + right; });
}

struct FactorParams {
    Map map;
    // Of `scale` the factor, of `soft_cap` the cap.
    float factor;
    u32 unused;
};

KERNEL(scale, FactorParams, THREADS) {
    store_each(p.map, [&](float x) { return x * p.factor; });
}

KERNEL(soft_cap, FactorParams, THREADS) {
    store_each(p.map, [&](float x) { return p.factor * tanhf(x / p.factor); });
}

struct GatherParams {
    Map map;
    // Which row of the input each row is.
    const u32* rows;
};

KERNEL(gather_rows, GatherParams, THREADS) {
    u32 row;
    if (!begin(p.map.count, row)) return;
    const float* input = p.map.row(p.rows[row]);
    store_share(p.map, row, [&](auto pack, u32 col) {
        return load<decltype(pack)::width>(input, col);
    });
}

struct PrepareParams {
    Map map;
};

// Integers and a scale for each 32 columns, a warp's: the same bits as the CPU backend's. Where an
// element is no finite number, the scale is NaN, and so is every product.
DEVICE void store_int8_share(const Map& map, u32 row) {
    constexpr u32 INFINITE = 0x7f800000;
    // Adding 1.5 * 2^23 and taking it away leaves the nearest integer, ties to even.
    constexpr float ROUND = 12582912.0f;
    const float* input = map.row(row);
    float x[4];
    for (u32 i = 0; i < 4; i++) {
        const u32 col = block_y() * SHARE + i * THREADS + thread_index();
        x[i] = col < map.cols ? input[col] : 0.0f;
    }
    for (u32 i = 0; i < 4; i++) {
        const u32 col = block_y() * SHARE + i * THREADS + thread_index();
        // Magnitudes order as their bits do.
        u32 top = float_bits(x[i]) & 0x7fffffff;
        for (u32 mask = 16; mask > 0; mask /= 2) top = max(top, shuffle_xor(top, mask));
        const bool finite = top < INFINITE;
        const float most = bits_float(top);
        const float over = 127.0f / most;
        const float inverse = float_bits(over) < INFINITE ? over : 0.0f;
        if (col >= map.target.stride) continue;
        const float q = finite ? (x[i] * inverse + ROUND) - ROUND : 0.0f;
        const size_t at = size_t(row) * map.target.stride + col;
        static_cast<u16*>(map.target.data)[at] = bf16_bits(q);
        if (lane() == 0) map.target.scales[at / 32] = finite ? most / 127.0f : bits_float(0x7fc00000);
    }
}

KERNEL(prepare, PrepareParams, THREADS) {
    u32 row;
    if (!begin(p.map.count, row, p.map.slots)) return;
    if (p.map.target.form == FORM_INT8) {
        store_int8_share(p.map, row);
        return;
    }
    const float* input = p.map.row(row);
    store_share(p.map, row, [&](auto pack, u32 col) {
        return load<decltype(pack)::width>(input, col);
    });
}
