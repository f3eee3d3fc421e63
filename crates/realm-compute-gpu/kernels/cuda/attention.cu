// Attention of a few rows over the paged cache. A block takes one split of one row, a KV head and up to
// HEADS of its query heads; each of its warps takes every WARPS-th piece of the split's tokens and keeps a
// softmax of its own, in f32. Pieces come, a few ahead, through a ring in shared memory.
//
// Everything is fixed by the position in the sequence: splits, pieces, the order of sums. So a row's bits
// depend on its own sequence alone.
#include "attention.cuh"
#ifdef KV_F32
#include "attention_lanes.cuh"
#else
#include "attention_tensor.cuh"
#endif

// Whether the cache is read before the kernel's predecessor has ended, as far as it is older than the
// step. The emulated device knows only that kernels write to the cache, and refuses.
#ifdef REALM_EMULATED
constexpr bool EARLY = false;
#else
constexpr bool EARLY = true;
#endif

// Which row, split and heads a block has.
struct Place {
    u32 row;
    // Of the pass.
    u32 unit;
    u32 kv_head;
    // First query head, and how many there are.
    u32 head, heads;
};

// Adds the block's softmaxes in order; stores the split, or the result where it is all there is.
template <class S, class Warp>
DEVICE void merge_block(const AttentionParams& p, const Place* kept, const Warp& own) {
    float* sums = reinterpret_cast<float*>(dynamic_shared());
    float* references = sums + S::PARTS * S::HEADS * S::DIM;
    float* totals = references + S::PARTS * S::HEADS;
    float* weights = totals + S::PARTS * S::HEADS;

    // The ring is not needed any more.
    sync_block();
    const Place place = *kept;
    own.put(sums, references, totals);
    sync_block();
    const u32 thread = thread_index();
    if (thread < S::PARTS * S::HEADS) {
        float top = NOTHING;
        for (u32 at = thread % S::HEADS; at < S::PARTS * S::HEADS; at += S::HEADS) {
            top = fmaxf(top, references[at]);
        }
        weights[thread] = weight_of(references[thread], top);
    }
    sync_block();
    for (u32 at = thread * 4; at < place.heads * S::DIM; at += S::WARPS * 32 * 4) {
        const u32 local = at / S::DIM, col = at % S::DIM;
        if (col >= p.kv.head_dim) continue;
        f32x4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        float all_of_it = 0.0f, top = NOTHING;
        for (u32 i = 0; i < S::PARTS; i++) {
            const u32 of = i * S::HEADS + local;
            const float weight = weights[of];
            add_scaled(sum, weight, *reinterpret_cast<const f32x4*>(sums + of * S::DIM + col));
            all_of_it = fmaf(weight, totals[of], all_of_it);
            top = fmaxf(top, references[of]);
        }
        const u32 head = place.head + local;
        if (p.direct) {
            // As the merge of one split does it, to the last bit.
            const float sink = sink_of(p, head), highest = fmaxf(top, sink);
            const float weight = weight_of(top, highest);
            f32x4 scaled = {0.0f, 0.0f, 0.0f, 0.0f};
            add_scaled(scaled, weight, sum);
            const float whole = fmaf(weight, all_of_it, 0.0f) + weight_of(sink, highest);
            store_quotient(p.target, place.row, head * p.kv.head_dim + col, scaled, whole);
        } else {
            const size_t to = size_t(head) * p.units + place.unit;
            *reinterpret_cast<f32x4*>(p.partials + to * p.kv.head_dim + col) = sum;
            if (col == 0) p.stats[to] = {top, all_of_it};
        }
    }
}

template <class S, class Warp>
DEVICE void attend(const AttentionParams& p) {
    const u32 subset = block_y() % p.subsets;
    Unit unit = {block_z(), block_x()};
    if (p.splits == 0) unit = find_unit(p, block_x());
    Place place;
    place.unit = block_z() * p.splits + block_x();
    place.row = p.first_row + unit.slot;
    place.kv_head = block_y() / p.subsets;
    place.head = place.kv_head * p.group + subset * S::HEADS;
    place.heads = min(p.group - subset * S::HEADS, S::HEADS);
    if (place.row >= *p.count) return wait_for_predecessor();

    const Row row = p.step.rows[place.row];
    const Sequence sequence = p.step.sequences[row.sequence];
    const Visible seen = visible(p, row, sequence);
    const u32 base = (seen.start / SPLIT + unit.split) * SPLIT;
    const u32 start = max(seen.start, base), end = min(seen.end, base + SPLIT);
    if (start >= end && !p.direct) return wait_for_predecessor();

    Stream<S> stream;
    stream.keys = p.kv.keys + size_t(place.kv_head) * p.kv.tile_bytes;
    stream.values = p.kv.values + size_t(place.kv_head) * p.kv.tile_bytes;
    stream.block_bytes = p.kv.kv_heads * p.kv.tile_bytes;
    stream.ring = dynamic_shared() + warp() * S::SLOTS * S::SLOT_BYTES;
    stream.row_bytes = p.kv.head_dim * Cache::BYTES;
    stream.head_dim = p.kv.head_dim;
    stream.start = start < end ? start - base : 0;
    stream.end = start < end ? end - base : 0;
    // From the piece of the first token on, the warp's first one.
    const u32 before = stream.start / S::PIECE;
    stream.first = before + (warp() - before) % S::WARPS;
    stream.block = 0;
    const u32 position = base + lane() * KV_BLOCK_TOKENS;
    if (lane() < SPLIT / KV_BLOCK_TOKENS && position < end && position + KV_BLOCK_TOKENS > start) {
        stream.block = block_of(p.step, sequence, position);
    }
    if (p.kv.head_dim < S::DIM) stream.clear();

    // What earlier steps wrote can be read before this step's kernels have ended: everything before the
    // sequence's first row.
    const bool first_row = place.row == 0 || p.step.rows[place.row - 1].sequence != row.sequence;
    const u32 old = first_row && row.position > base ? row.position - base : 0;
    u32 fetched = 0;
    if (!EARLY) wait_for_predecessor();
    while (fetched < S::SLOTS && (stream.piece(fetched) + 1) * S::PIECE <= old) {
        stream.fetch(fetched++);
    }
    if (EARLY) wait_for_predecessor();
    while (fetched < S::SLOTS) stream.fetch(fetched++);
    let_successor_start();

    // Not in registers, of which the loop has none to spare.
    SHARED(Place, kept, 1);
    if (thread_index() == 0) *kept = place;

    Warp own;
    own.load(p, place.row, place.head, place.heads);
    own.run(p, stream);
    wait_async<0>();
    merge_block<S>(p, kept, own);
    if (p.direct && block_y() == 0) {
        store_zeros(p.target, kept->row, p.heads * p.kv.head_dim, thread_index(), thread_count());
    }
}

#define NAME_OF(kv, dim, heads) attention_##kv##_d##dim##_h##heads
#define NAME(kv, dim, heads) NAME_OF(kv, dim, heads)
#define NAME_MERGE_OF(kv) attention_##kv##_merge
#define NAME_MERGE(kv) NAME_MERGE_OF(kv)
// Heads of up to `dim` elements, up to `heads` query heads a block; `blocks` is how many blocks registers
// shall suffice for on a multiprocessor.
#define ATTENTION(dim, heads, blocks, Shape, Warp)                                       \
    KERNEL_BLOCKS(NAME(KV, dim, heads), AttentionParams, (Shape::WARPS) * 32, blocks) { \
        attend<Shape, Warp<Shape>>(p);                                                   \
    }
#define LANES(dim, heads, blocks, warps, lanes, size)                  \
    using Lanes##dim##_##heads = LaneShape<warps, lanes, size, heads>; \
    ATTENTION(dim, heads, blocks, Lanes##dim##_##heads, LaneWarp)
#define TENSOR(dim, blocks)                 \
    using Tensor##dim = TensorShape<dim>; \
    ATTENTION(dim, 8, blocks, Tensor##dim, TensorWarp)

#ifdef KV_F32
LANES(64, 1, 2, 8, 8, 8)
LANES(64, 4, 2, 8, 8, 8)
LANES(64, 8, 2, 4, 8, 8)
LANES(128, 1, 2, 8, 8, 16)
LANES(128, 4, 2, 8, 16, 8)
LANES(128, 8, 2, 4, 16, 8)
LANES(256, 1, 2, 8, 16, 16)
LANES(256, 4, 2, 8, 32, 8)
LANES(256, 8, 2, 4, 32, 8)
#else
TENSOR(64, 4)
TENSOR(128, 3)
TENSOR(256, 2)
#endif

constexpr u32 MERGE_WARPS = 8;

// Adds a row's splits for one head: warp w those of every eighth from number w on, then the warps in order.
KERNEL(NAME_MERGE(KV), AttentionParams, MERGE_WARPS * 32) {
    SHARED(f32x4, shares, MERGE_WARPS * 64);
    const u32 slot = block_y(), row_at = p.first_row + slot, head = block_x();
    let_successor_start();
    if (row_at >= *p.count) return wait_for_predecessor();
    const Row row = p.step.rows[row_at];
    const Visible seen = visible(p, row, p.step.sequences[row.sequence]);
    const u32 count = splits_of(seen);
    const size_t first = size_t(head) * p.units + first_unit(p, slot);
    wait_for_predecessor();

    const f32x2* stats = p.stats + first;
    const float sink = sink_of(p, head);
    float top = sink;
    for (u32 i = lane(); i < count; i += 32) top = fmaxf(top, stats[i].x);
    for (u32 bit = 1; bit < 32; bit *= 2) top = fmaxf(top, shuffle_xor(top, bit));
    float total = 0.0f;
    for (u32 i = lane(); i < count; i += 32) {
        total = fmaf(weight_of(stats[i].x, top), stats[i].y, total);
    }
    for (u32 bit = 1; bit < 32; bit *= 2) total += shuffle_xor(total, bit);
    total += weight_of(sink, top);

    const u32 quads = p.kv.head_dim / 4;
    const f32x4* sums = reinterpret_cast<const f32x4*>(p.partials + first * p.kv.head_dim);
    for (u32 quad = lane(); quad < quads; quad += 32) {
        f32x4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
        for (u32 i = warp(); i < count; i += MERGE_WARPS) {
            add_scaled(sum, weight_of(stats[i].x, top), sums[size_t(i) * quads + quad]);
        }
        shares[warp() * 64 + quad] = sum;
    }
    sync_block();
    for (u32 quad = thread_index(); quad < quads; quad += thread_count()) {
        f32x4 sum = shares[quad];
        for (u32 i = 1; i < MERGE_WARPS; i++) add_scaled(sum, 1.0f, shares[i * 64 + quad]);
        store_quotient(p.target, row_at, head * p.kv.head_dim + quad * 4, sum, total);
    }
    if (head == 0) {
        store_zeros(p.target, row_at, p.heads * p.kv.head_dim, thread_index(), thread_count());
    }
}
