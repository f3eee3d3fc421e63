// What all products of a few rows share: their parameters, the stream of a weight's planes through a
// warp's ring in shared memory, and the end of a block.
//
// A block has a tile of 16 weight rows. Its warps share the tile's slices of k, whose number depends on
// the weight's shape alone: each warp sums its slices one by one, and the block adds them in order.
#pragma once
#include "formats.cuh"
#include "step.cuh"

// One weight and where its product goes.
struct Segment {
    const u8* planes;
    // An f32 a weight row, or null.
    const float* bias;
    Columns target;
    // Row tiles, and rows: those of the last tile may be fewer.
    u32 tiles;
    u32 n;
    u32 slices;
    u32 unused;
};

struct MatvecParams {
    Columns input;
    // How many rows there are: those of the grid beyond end at once.
    const u32* count;
    u32 k;
    // Rows of the input a block, and columns that each takes.
    u32 group_rows;
    u32 row_columns;
    // Stages that a warp has in its ring, 4 at most, and columns for which each has room.
    u32 ring_stages;
    u32 columns;
    // Bytes of shared memory: a warp's, and where partial sums lie, one slice's after another's.
    u32 warp_bytes;
    u32 partial;
    u32 partial_stride;
    // 0: segments, one after another in the grid. Otherwise one target, activation(first) · second.
    u32 activation;
    u32 unused;
    Segment segments[4];
};

// Where a warp works.
struct Place {
    // Its segment, and the row tile in it.
    u32 segment;
    u32 tile;
    // Which of the warps that share the tile's slices it is, and their number.
    u32 member;
    u32 team;

    DEVICE explicit Place(const MatvecParams& p)
        : segment(0), tile(block_x()), member(warp()), team(thread_count() / 32) {
        if (p.activation) {
            team /= 2;
            segment = member >= team;
            member -= segment * team;
        } else {
            while (tile >= p.segments[segment].tiles) tile -= p.segments[segment++].tiles;
        }
    }
};

// A walk over the stages of a warp's slices.
struct Walk {
    u32 slice, stage, end;
    u32 team, slices, stages;

    DEVICE Walk(const Place& place, u32 slice_count, u32 stage_count)
        : slice(place.member), stage(0), end(0), team(place.team), slices(slice_count), stages(stage_count) {
        enter();
    }
    DEVICE void enter() {
        if (done()) return;
        stage = slice * stages / slices;
        end = (slice + 1) * stages / slices;
    }
    DEVICE bool done() const { return slice >= slices; }
    DEVICE void next() {
        if (++stage < end) return;
        slice += team;
        enter();
    }
};

// At most `pending` of the thread's groups of copies are under way.
DEVICE void wait_pending(u32 pending) {
    switch (pending) {
    case 0:
        wait_async<0>();
        break;
    case 1:
        wait_async<1>();
        break;
    case 2:
        wait_async<2>();
        break;
    default:
        wait_async<3>();
        break;
    }
}

// A copy to shared memory: on its way, or done on return.
template <bool ASYNC>
DEVICE void copy16(void* to, const void* from) {
    if constexpr (ASYNC) {
        copy_async16(to, from);
    } else {
        *static_cast<u32x4*>(to) = *static_cast<const u32x4*>(from);
    }
}

// A warp's stream of stages: the planes of F as they lie, and `ROOM` bytes for each column's activations.
template <class F, u32 ROOM>
struct Stream {
    static constexpr u32 STAGE_K = F::STAGE_TILES * F::TILE_K;
    static constexpr u32 STAGE_BYTES = F::STAGE_TILES * F::TILE_BYTES;

    const MatvecParams& p;
    // The row tile's planes, its tiles and stages.
    const u8* planes;
    u32 tiles, stages;
    u8* ring;
    u32 slot_bytes;
    // The columns of the block's rows, once they are known; the first of them.
    u32 columns, first_column;

    // `taken` bytes of the warp's shared memory lie before the ring.
    DEVICE Stream(const MatvecParams& params, const Segment& segment, u32 tile, u32 taken)
        : p(params), tiles((p.k + F::TILE_K - 1) / F::TILE_K), columns(0), first_column(0) {
        stages = (tiles + F::STAGE_TILES - 1) / F::STAGE_TILES;
        planes = segment.planes + size_t(tile) * tiles * F::TILE_BYTES;
        ring = dynamic_shared() + warp() * p.warp_bytes + taken;
        slot_bytes = STAGE_BYTES + p.columns * ROOM;
    }

    DEVICE void set_rows(u32 rows) {
        first_column = block_y() * p.group_rows * p.row_columns;
        columns = rows * p.row_columns;
    }

    // Tiles of a stage: the last stage may lack some.
    DEVICE u32 stage_tiles(u32 stage) const {
        return F::STAGE_TILES == 1 ? 1 : min(F::STAGE_TILES, tiles - stage * F::STAGE_TILES);
    }

    DEVICE void copy_weights(u8* slot, u32 stage) const {
        constexpr u32 PIECES = STAGE_BYTES / 16;
        const u8* from = planes + stage * STAGE_BYTES + 16 * lane();
        u8* to = slot + 16 * lane();
        const u32 pieces = stage_tiles(stage) * (F::TILE_BYTES / 16);
#pragma unroll
        for (u32 i = 0; i < PIECES; i += 32) {
            const bool whole = F::STAGE_TILES == 1 && i + 32 <= PIECES;
            if (whole || i + lane() < pieces) copy_async16_stream(to + 16 * i, from + 16 * i);
        }
    }

    DEVICE u8* after(u8* slot) const {
        slot += slot_bytes;
        return slot == ring + p.ring_stages * slot_bytes ? ring : slot;
    }
};

// Rows of the block's group, 0 where it has none.
DEVICE u32 rows_of_group(const MatvecParams& p) {
    const u32 first = block_y() * p.group_rows, rows = *p.count;
    return first < rows ? min(rows - first, p.group_rows) : 0;
}

// realm_core::graph::ops::Activation, from 1.
DEVICE float activate(u32 activation, float x) {
    switch (activation) {
    case 1:
        return x / (1.0f + expf(-x));
    case 2:
        return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    default:
        return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
    }
}

// An element of the product: the sums of a column's slices in order, then its row's columns. A slice's
// partial sums lie [column][16 weight rows]; `first` is the segment's first slice.
DEVICE float add_slices(const MatvecParams& p, const Segment& segment, u32 first, u32 row, u32 weight_row) {
    const u8* partial = dynamic_shared() + p.partial + first * p.partial_stride;
    float total = 0.0f;
    for (u32 column = row * p.row_columns; column < (row + 1) * p.row_columns; column++) {
        const u8* at = partial + 4 * (16 * column + weight_row);
        float sum = 0.0f;
#pragma unroll 4
        for (u32 slice = 0; slice < segment.slices; slice++, at += p.partial_stride) {
            sum += *reinterpret_cast<const float*>(at);
        }
        total += sum;
    }
    return total;
}

// Adds up the slices and stores the block's 16 columns of the product.
DEVICE void finish(const MatvecParams& p, const Place& place, u32 rows) {
    const Segment& segment = p.segments[p.activation ? 0 : place.segment];
    const u32 first_row = block_y() * p.group_rows;
    sync_block();
    for (u32 i = thread_index(); i < 16 * rows; i += thread_count()) {
        const u32 row = i / 16, weight_row = i % 16, n = 16 * place.tile + weight_row;
        if (n >= segment.n) continue;
        float value = add_slices(p, segment, 0, row, weight_row);
        if (segment.bias) value += segment.bias[n];
        if (p.activation) {
            const Segment& up = p.segments[1];
            float factor = add_slices(p, up, segment.slices, row, weight_row);
            if (up.bias) factor += up.bias[n];
            value = activate(p.activation, value) * factor;
        }
        store(segment.target, first_row + row, n, value);
    }
    if (place.tile + 1 < segment.tiles) return;
    for (u32 row = 0; row < rows; row++) {
        store_zeros(segment.target, first_row + row, segment.n, thread_index(), thread_count());
    }
}

// A block's work. Run, made of (params, segment, tile), has a Stream `stream` and the functions
// set_rows(rows), copy_activations<ASYNC>(slot, stage), add_stage(slot, stage) and put_partial(to), which
// writes a slice's sums and begins anew.
template <class Run>
DEVICE void matvec(const MatvecParams& p) {
    const Place place(p);
    const Segment& segment = p.segments[place.segment];
    if (block_y() > 0) {
        wait_for_predecessor();
        if (rows_of_group(p) == 0) return;
    }
    Run run(p, segment, place.tile);
    const auto& stream = run.stream;

    // Weights do not wait for the kernel before.
    Walk ahead(place, segment.slices, stream.stages);
    u8* slot = stream.ring;
    for (u32 i = 0; i < p.ring_stages; i++, slot += stream.slot_bytes) {
        if (!ahead.done()) {
            stream.copy_weights(slot, ahead.stage);
            ahead.next();
        }
        commit_async();
    }
    wait_for_predecessor();
    let_successor_start();
    const u32 rows = rows_of_group(p);
    if (rows == 0) {
        wait_async<0>();
        return;
    }
    run.set_rows(rows);
    // Not asynchronously: groups of copies end in order, and these would hold up the first stage until
    // the last stage's weights have come.
    slot = stream.ring;
    Walk at(place, segment.slices, stream.stages);
    for (u32 i = 0; i < p.ring_stages && !at.done(); i++, slot += stream.slot_bytes) {
        run.template copy_activations<false>(slot, at.stage);
        at.next();
    }

    u8* partial = dynamic_shared() + p.partial;
    if (p.activation) partial += place.segment * p.segments[0].slices * p.partial_stride;
    slot = stream.ring;
    at = Walk(place, segment.slices, stream.stages);
    while (!at.done()) {
        wait_pending(p.ring_stages - 1);
        sync_warp();
        run.add_stage(slot, at.stage);
        sync_warp();
        const u32 slice = at.slice;
        at.next();
        if (at.slice != slice) run.put_partial(partial + slice * p.partial_stride);
        if (!ahead.done()) {
            stream.copy_weights(slot, ahead.stage);
            run.template copy_activations<true>(slot, ahead.stage);
            ahead.next();
        }
        commit_async();
        slot = stream.after(slot);
    }
    finish(p, place, rows);
}
