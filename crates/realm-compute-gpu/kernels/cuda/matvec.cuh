// What all products of a few rows share: their parameters, a warp's ring of stages in shared
// memory, and the end of a block.
//
// A block has a tile of 16 weight rows. Its warps share the tile's slices of k, whose number
// depends on the weight's shape alone: each warp sums its share of them, neighbours, one by one,
// and the block adds all in order.
#pragma once
#include "activation.cuh"
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
    // Slices, and stages of each; so many slices, the first, have one more.
    u32 slices;
    u32 slice_stages;
    u32 longer_slices;
    // Slices of a warp; so many warps, the first, have one more.
    u32 share;
    u32 longer_shares;
    // Of experts: row tiles of the whole weight.
    u32 all_tiles;
};

struct MatvecParams {
    Columns input;
    // How many rows there are: those of the grid beyond end at once.
    const u32* count;
    u32 k;
    // Rows of the input a block, and columns that each takes.
    u32 group_rows;
    u32 row_columns;
    // Stages of a warp's ring: one only where no warp has more.
    u32 ring_stages;
    // Bytes of shared memory: a stage's slot, a warp's.
    u32 slot_bytes;
    u32 warp_bytes;
    // Where partial sums lie, one slice's after another's.
    u32 partial;
    u32 partial_stride;
    // 0: segments, one after another in the grid. Otherwise one target, activation(first) · second.
    u32 activation;
    // The grid's first axis is tiles and its second groups of rows, or the other way round.
    u32 tiles_in_x;
    Segment segments[4];
};

// Of a mixture of experts: a group of rows is one slot, a row and one of its experts, and the target
// has a row a slot. A weight has the rows of all experts, one's after another's. `n` of a segment is
// one expert's, and `tiles` the most tiles that it lies in: an expert need not begin with a tile.
struct MixtureParams : MatvecParams {
    // The number of each slot's expert.
    const u32* experts;
    // Slots for each of the rows that *count counts, and slots that share a row of the input.
    u32 slots;
    u32 input_slots;
};

// A number that is the same in all lanes, so that the compiler knows it.
DEVICE u32 uniform(u32 value) { return shuffle(value, 0); }

// The block's group of rows.
DEVICE u32 group(const MatvecParams& p) { return p.tiles_in_x ? block_y() : block_x(); }

// The block's first row of the input.
DEVICE u32 first_input_row(const MatvecParams& p) { return group(p) * p.group_rows; }
DEVICE u32 first_input_row(const MixtureParams& p) { return group(p) / p.input_slots; }

// Where the block's expert begins: a row of a segment's weight.
DEVICE u32 expert_row(const MatvecParams&, const Segment&) { return 0; }
DEVICE u32 expert_row(const MixtureParams& p, const Segment& segment) {
    return p.experts[group(p)] * segment.n;
}

// The row tile of a segment's weight that is the block's `tile`. Where the expert lies in fewer tiles
// than another would, the last may be beyond the weight: any serves then, as nothing of it is stored.
DEVICE u32 weight_tile(const MatvecParams&, const Segment&, u32 tile) { return tile; }
DEVICE u32 weight_tile(const MixtureParams& p, const Segment& segment, u32 tile) {
    return min(expert_row(p, segment) / 16 + tile, segment.all_tiles - 1);
}

// Where a warp works.
struct Place {
    // Its segment, and the row tile in it.
    u32 segment;
    u32 tile;
    // Which of the warps that share the tile's slices it is, and their number.
    u32 member;
    u32 team;

    DEVICE explicit Place(const MatvecParams& p)
        : segment(0),
          tile(p.tiles_in_x ? block_x() : block_y()),
          member(uniform(warp())),
          team(thread_count() / 32) {
        if (p.activation) {
            team /= 2;
            segment = member >= team;
            member -= segment * team;
        } else {
            while (tile >= p.segments[segment].tiles) tile -= p.segments[segment++].tiles;
        }
    }
};

// Where a warp's slices begin; those of the warp after the last end there, too.
DEVICE u32 first_slice(const Segment& segment, u32 member) {
    return member * segment.share + min(member, segment.longer_shares);
}

// Where a slice's stages begin.
DEVICE u32 first_stage(const Segment& segment, u32 slice) {
    return slice * segment.slice_stages + min(slice, segment.longer_slices);
}

// The partial sums of a segment's first slice.
DEVICE u8* partial_sums(const MatvecParams& p, u32 segment) {
    u8* to = dynamic_shared() + p.partial;
    return p.activation ? to + segment * p.segments[0].slices * p.partial_stride : to;
}

// A warp's ring. A slot has the barrier at which its planes arrive, the planes of F as they lie,
// then each column's activations. P: the kernel's parameters.
template <class F, class P = MatvecParams>
struct Ring {
    static constexpr u32 STAGE_K = F::STAGE_TILES * F::TILE_K;
    static constexpr u32 STAGE_BYTES = F::STAGE_TILES * F::TILE_BYTES;
    static constexpr u32 PLANES = 16;
    static constexpr u32 ACTIVATIONS = PLANES + STAGE_BYTES;

    const P& p;
    // The next stage's planes, and those of the row tile that are not asked for yet, in bytes.
    const u8* next;
    u32 left;
    u8 *start, *end;

    // `taken` bytes of the warp's shared memory lie before the ring.
    DEVICE Ring(const P& params, u32 taken) : p(params), next(nullptr), left(0) {
        start = dynamic_shared() + uniform(warp()) * p.warp_bytes + taken;
        end = start + p.ring_stages * p.slot_bytes;
        if (lane() < p.ring_stages) make_arrival(barrier(start + lane() * p.slot_bytes));
        sync_warp();
    }

    static DEVICE u64* barrier(u8* slot) { return reinterpret_cast<u64*>(slot); }

    // Goes on with a stage of a row tile.
    DEVICE void begin(const Segment& segment, u32 tile, u32 stage) {
        const u32 bytes = (p.k + F::TILE_K - 1) / F::TILE_K * F::TILE_BYTES;
        next = segment.planes + size_t(weight_tile(p, segment, tile)) * bytes + stage * STAGE_BYTES;
        left = bytes - stage * STAGE_BYTES;
    }

    // The last stage of a row may lack tiles. Where other groups of rows need the planes, too, they
    // stay in the L2.
    DEVICE void copy_planes(u8* slot) {
        const u32 bytes = F::STAGE_TILES == 1 ? STAGE_BYTES : min(left, STAGE_BYTES);
        copy_bulk_stream(slot + PLANES, next, bytes, barrier(slot), !p.tiles_in_x);
        next += STAGE_BYTES;
        left -= bytes;
    }

    // Waits for the first `count` stages, which nobody needs: memory that a copy is on its way to
    // cannot be given back.
    DEVICE void drain(u32 count) const {
        u8* slot = start;
        for (u32 i = 0; i < count; i++, slot = after(slot)) wait_arrival(barrier(slot), 0);
    }

    // The tiles of a stage.
    DEVICE u32 tiles(u32 stage) const {
        const u32 all = (p.k + F::TILE_K - 1) / F::TILE_K;
        return F::STAGE_TILES == 1 ? 1 : min(F::STAGE_TILES, all - stage * F::STAGE_TILES);
    }

    // The slot after this one.
    DEVICE u8* after(u8* slot) const {
        slot += p.slot_bytes;
        return slot == end ? start : slot;
    }
};

// Rows of the block's group, 0 where it has none. How many there are was written before the step
// began, so that it can be read before the kernel waits.
DEVICE u32 rows_of_group(const MatvecParams& p) {
    const u32 first = group(p) * p.group_rows, rows = *p.count;
    return first < rows ? min(rows - first, p.group_rows) : 0;
}
DEVICE u32 rows_of_group(const MixtureParams& p) { return group(p) < *p.count * p.slots; }

// An element of the product: the sums of a column's slices in order, then its row's columns. A
// slice's partial sums lie [column][16 weight rows]; `first` is the segment's first slice.
DEVICE float add_slices(const MatvecParams& p, const Segment& segment, u32 first, u32 row,
                        u32 weight_row) {
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
template <class P>
DEVICE void finish(const P& p, const Place& place, u32 rows) {
    const Segment& segment = p.segments[p.activation ? 0 : place.segment];
    const u32 first_row = group(p) * p.group_rows;
    // Rows of the first tile that are another expert's.
    const u32 others = expert_row(p, segment) % 16;
    sync_block();
    for (u32 i = thread_index(); i < 16 * rows; i += thread_count()) {
        const u32 row = i / 16, weight_row = i % 16, n = 16 * place.tile + weight_row - others;
        // Below 0 it is a large number.
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

// A block's work. Run, made of the parameters, has a Ring `ring` and the functions set_rows(rows),
// begin(stage), copy_activations(slot), asynchronously, of the stage and then of the ones after it,
// add_stage(slot, tiles), and put_partial(to), which writes a slice's sums and begins anew.
template <class Run, class P>
DEVICE void matvec(const P& p) {
    constexpr bool CHOSEN = sizeof(P) > sizeof(MatvecParams);
    const u32 rows = rows_of_group(p);
    // Blocks after the last row; those before it do not wait for the number.
    if ((CHOSEN || group(p) > 0) && rows == 0) return wait_for_predecessor();
    const Place place(p);
    const Segment& segment = p.segments[place.segment];
    Run run(p);
    auto& ring = run.ring;

    u32 slice = first_slice(segment, place.member);
    u32 stage = first_stage(segment, slice);
    const u32 last_stage = first_stage(segment, first_slice(segment, place.member + 1));
    const u32 early = min(p.ring_stages, last_stage - stage);
    // Weights do not wait for the kernel before, but for the one that chose them.
    if constexpr (CHOSEN) wait_for_predecessor();
    ring.begin(segment, place.tile, stage);
    u8* slot = ring.start;
    for (u32 i = 0; i < early; i++, slot = ring.after(slot)) ring.copy_planes(slot);
    // The next kernel waits for all of this one, thus for all that this one waits for.
    let_successor_start();
    if constexpr (!CHOSEN) wait_for_predecessor();
    if (rows == 0) return ring.drain(early);
    run.set_rows(rows);
    run.begin(stage);
    // A stage's activations are the last group of copies but one when they are waited for.
    slot = ring.start;
    for (u32 i = 0; i < max(p.ring_stages, 2u); i++, slot = ring.after(slot)) {
        if (i < early) run.copy_activations(slot);
        commit_async();
    }

    slot = ring.start;
    u8* partial = partial_sums(p, place.segment) + slice * p.partial_stride;
    u32 end = first_stage(segment, slice + 1);
    for (u32 phase = 0; stage < last_stage;) {
        wait_arrival(ring.barrier(slot), phase);
        wait_async<1>();
        sync_warp();
        run.add_stage(slot, stage);
        sync_warp();
        if (stage + p.ring_stages < last_stage) {
            ring.copy_planes(slot);
            run.copy_activations(slot);
        }
        commit_async();
        slot += p.slot_bytes;
        if (slot == ring.end) {
            slot = ring.start;
            phase ^= 1;
        }
        if (++stage < end) continue;
        run.put_partial(partial);
        partial += p.partial_stride;
        end = first_stage(segment, ++slice + 1);
    }
    finish(p, place, rows);
}
