// Attention of a few rows over the paged cache. A block takes one split of one row, a KV head and up to
// HEADS of its query heads; each of its warps takes every WARPS-th piece of the split's tokens
// and keeps a softmax of its own, in f32.
//
// A warp looks at 32 / LANES tokens side by side: a lane holds SIZE elements of its token's key, then of
// its value, and the same elements of the queries and of the sums in registers. Every lane copies what
// it reads itself, a few pieces ahead, through a ring in shared memory. The lanes' shares of a score are
// added so that each lane ends with one score, of its own token and head: exponentials are computed once.
//
// Everything is fixed by the position in the sequence: splits, pieces, the order of sums. So a row's bits
// depend on its own sequence alone.
#include "attention.cuh"
#include "attention_stream.cuh"

// A score may exceed the reference by this much before the sums are taken relative to a new one: sums
// grow by e^8 at most, and in f32 nothing is lost.
constexpr float LEEWAY = 8.0f;

// Whether the cache is read before the kernel's predecessor has ended, as far as it is older than the
// step. The emulated device knows only that kernels write to the cache, and refuses.
#ifdef REALM_EMULATED
constexpr bool EARLY = false;
#else
constexpr bool EARLY = true;
#endif

// The lane of a group that `reduce` gives a score to.
template <u32 COUNT>
DEVICE u32 holder(u32 score) {
    u32 lane = 0;
#pragma unroll
    for (u32 bit = 1, half = COUNT / 2; half > 0; bit *= 2, half /= 2) {
        if (score & half) lane |= bit;
    }
    return lane;
}

// The score that `reduce` gives a lane.
template <u32 COUNT>
DEVICE u32 held(u32 lane) {
    u32 score = 0;
#pragma unroll
    for (u32 bit = 1, half = COUNT / 2; half > 0; bit *= 2, half /= 2) {
        if (lane & bit) score |= half;
    }
    return score;
}

// Adds the shares that a group's lanes have of COUNT scores. Each exchange halves the scores that a lane
// goes on with: HALF is what is left of them, BIT the exchange.
template <u32 LANES, u32 HALF, u32 BIT = 1, u32 COUNT>
DEVICE float reduce(float (&s)[COUNT]) {
    if constexpr (HALF > 0) {
        const bool upper = lane() & BIT;
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            const float low = s[i], high = s[i + HALF];
            s[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, BIT);
        }
        return reduce<LANES, HALF / 2, BIT * 2>(s);
    } else if constexpr (BIT < LANES) {
        s[0] += shuffle_xor(s[0], BIT);
        return reduce<LANES, 0, BIT * 2>(s);
    } else {
        return s[0];
    }
}

// A softmax under way: of a group's tokens, HEADS heads. A lane keeps the reference and the total of the
// one head whose scores it is given, the total of its own tokens only.
template <class S>
struct Softmax {
    float sums[S::HEADS][S::SIZE];
    float reference;
    float total;

    // Scores become weights relative to the reference.
    DEVICE void weigh(float (&scores)[S::ROUNDS]) {
        float most = scores[0];
#pragma unroll
        for (u32 round = 1; round < S::ROUNDS; round++) most = fmaxf(most, scores[round]);
#pragma unroll
        for (u32 bit = 1; bit < S::TOKENS; bit *= 2) most = fmaxf(most, shuffle_xor(most, bit));
        const bool raise = most > reference + LEEWAY;
        if (any(raise)) {
            const float factor = raise ? expf(reference - most) : 1.0f;
            reference = raise ? most : reference;
            total *= factor;
#pragma unroll
            for (u32 head = 0; head < S::HEADS; head++) {
                const float of_head = from_holder(factor, head);
#pragma unroll
                for (u32 i = 0; i < S::SIZE; i++) sums[head][i] *= of_head;
            }
        }
#pragma unroll
        for (u32 round = 0; round < S::ROUNDS; round++) {
            scores[round] = scores[round] == NOTHING ? 0.0f : expf(scores[round] - reference);
            total += scores[round];
        }
    }

    static DEVICE float from_holder(float value, u32 score) {
        return shuffle(value, lane() / S::LANES * S::LANES + holder<S::SCORES>(score));
    }
};

template <class S>
DEVICE void score(const AttentionParams& p, const Stream<S>& stream, u32 half,
                  const float (&query)[S::HEADS][S::SIZE], float (&scores)[S::ROUNDS]) {
    const u32 mine = held<S::SCORES>(lane() % S::LANES) / S::HEADS;
    const u32 token = stream.piece(half) * S::PIECE + lane() / S::LANES;
#pragma unroll
    for (u32 round = 0; round < S::ROUNDS; round++) {
        float shares[S::SCORES];
#pragma unroll
        for (u32 i = 0; i < S::TOKENS; i++) {
            float* share = shares + i * S::HEADS;
#pragma unroll
            for (u32 head = 0; head < S::HEADS; head++) share[head] = 0.0f;
#pragma unroll
            for (u32 unit = 0; unit < S::UNITS; unit++) {
                float key[S::UNIT];
                const float scale = stream.load(key, half, round * S::TOKENS + i, unit);
#pragma unroll
                for (u32 head = 0; head < S::HEADS; head++) {
                    float dot = Cache::SCALED ? 0.0f : share[head];
#pragma unroll
                    for (u32 e = 0; e < S::UNIT; e++) {
                        dot = fmaf(query[head][unit * S::UNIT + e], key[e], dot);
                    }
                    share[head] = Cache::SCALED ? fmaf(scale, dot, share[head]) : dot;
                }
            }
        }
        float value = reduce<S::LANES, S::SCORES / 2>(shares) * p.scale;
        if (p.soft_cap > 0.0f) value = p.soft_cap * tanhf(value / p.soft_cap);
        const u32 at = token + (round * S::TOKENS + mine) * S::GROUPS;
        scores[round] = stream.is_seen(at) ? value : NOTHING;
    }
}

template <class S>
DEVICE void add_values(const Stream<S>& stream, u32 half, const float (&weights)[S::ROUNDS],
                       Softmax<S>& softmax) {
#pragma unroll
    for (u32 round = 0; round < S::ROUNDS; round++) {
#pragma unroll
        for (u32 i = 0; i < S::TOKENS; i++) {
            float weight[S::HEADS];
#pragma unroll
            for (u32 head = 0; head < S::HEADS; head++) {
                weight[head] = softmax.from_holder(weights[round], i * S::HEADS + head);
            }
#pragma unroll
            for (u32 unit = 0; unit < S::UNITS; unit++) {
                float value[S::UNIT];
                const float scale = stream.load(value, half, round * S::TOKENS + i, unit);
#pragma unroll
                for (u32 head = 0; head < S::HEADS; head++) {
                    const float factor = Cache::SCALED ? weight[head] * scale : weight[head];
#pragma unroll
                    for (u32 e = 0; e < S::UNIT; e++) {
                        float& sum = softmax.sums[head][unit * S::UNIT + e];
                        sum = fmaf(factor, value[e], sum);
                    }
                }
            }
        }
    }
}

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
template <class S>
DEVICE void merge_block(const AttentionParams& p, const Place* kept, const Softmax<S>& softmax) {
    float* sums = reinterpret_cast<float*>(dynamic_shared());
    float* references = sums + S::PARTS * S::HEADS * S::DIM;
    float* totals = references + S::PARTS * S::HEADS;
    float* weights = totals + S::PARTS * S::HEADS;

    float total = softmax.total;
#pragma unroll
    for (u32 bit = 1; bit < S::TOKENS; bit *= 2) total += shuffle_xor(total, bit);
    // The ring is not needed any more.
    sync_block();
    const Place place = *kept;
    const u32 part = thread_index() / S::LANES, in_group = lane() % S::LANES;
    if (in_group < S::SCORES && held<S::SCORES>(in_group) < S::HEADS) {
        const u32 at = part * S::HEADS + held<S::SCORES>(in_group);
        references[at] = softmax.reference;
        totals[at] = total;
    }
#pragma unroll
    for (u32 head = 0; head < S::HEADS; head++) {
        float* to = sums + (part * S::HEADS + head) * S::DIM;
#pragma unroll
        for (u32 i = 0; i < S::SIZE; i += 4) {
            const float* from = softmax.sums[head] + i;
            const u32 at = Stream<S>::element(i / S::UNIT) + i % S::UNIT;
            *reinterpret_cast<f32x4*>(to + at) = {from[0], from[1], from[2], from[3]};
        }
    }
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

template <u32 WARPS, u32 LANES, u32 SIZE, u32 HEADS>
DEVICE void attend(const AttentionParams& p) {
    using S = Shape<WARPS, LANES, SIZE, HEADS>;
    const u32 subset = block_y() % p.subsets;
    Unit unit = {block_z(), block_x()};
    if (p.splits == 0) unit = find_unit(p, block_x());
    Place place;
    place.unit = block_z() * p.splits + block_x();
    place.row = p.first_row + unit.slot;
    place.kv_head = block_y() / p.subsets;
    place.head = place.kv_head * p.group + subset * HEADS;
    place.heads = min(p.group - subset * HEADS, HEADS);
    if (place.row >= p.step.counts->rows) return wait_for_predecessor();

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
    stream.ring = dynamic_shared() + warp() * SLOTS * S::SLOT_BYTES;
    stream.row_bytes = p.kv.head_dim * Cache::BYTES;
    stream.head_dim = p.kv.head_dim;
    stream.start = start < end ? start - base : 0;
    stream.end = start < end ? end - base : 0;
    // From the piece of the first token on, the warp's first one.
    const u32 before = stream.start / S::PIECE;
    stream.first = before + (warp() - before) % WARPS;
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
    while (fetched < SLOTS && (stream.piece(fetched) + 1) * S::PIECE <= old) {
        stream.fetch(fetched++);
    }
    if (EARLY) wait_for_predecessor();
    while (fetched < SLOTS) stream.fetch(fetched++);
    let_successor_start();

    // Not in registers, of which the loop has none to spare.
    SHARED(Place, kept, 1);
    if (thread_index() == 0) *kept = place;

    float query[HEADS][SIZE];
    Softmax<S> softmax;
    softmax.reference = NOTHING;
    softmax.total = 0.0f;
    const float* from = p.query + (size_t(place.row) * p.heads + place.head) * p.kv.head_dim;
#pragma unroll
    for (u32 head = 0; head < HEADS; head++) {
#pragma unroll
        for (u32 i = 0; i < SIZE; i += 4) {
            const u32 at = stream.element(i / S::UNIT) + i % S::UNIT;
            f32x4 v = {0.0f, 0.0f, 0.0f, 0.0f};
            if (head < place.heads && at < p.kv.head_dim) {
                v = *reinterpret_cast<const f32x4*>(from + head * p.kv.head_dim + at);
            }
            query[head][i] = v.x, query[head][i + 1] = v.y;
            query[head][i + 2] = v.z, query[head][i + 3] = v.w;
            for (u32 j = i; j < i + 4; j++) softmax.sums[head][j] = 0.0f;
        }
    }
    for (u32 half = 0; stream.is_there(half); half += 2) {
        float weights[S::ROUNDS];
        stream.arrive();
        score<S>(p, stream, half, query, weights);
        stream.leave(half);
        softmax.weigh(weights);
        stream.arrive();
        add_values<S>(stream, half + 1, weights, softmax);
        stream.leave(half + 1);
    }
    wait_async<0>();
    merge_block<S>(p, kept, softmax);
    if (p.direct && block_y() == 0) {
        store_zeros(p.target, kept->row, p.heads * p.kv.head_dim, thread_index(), thread_count());
    }
}

#define NAME_OF(kv, dim, heads) attention_##kv##_d##dim##_h##heads
#define NAME(kv, dim, heads) NAME_OF(kv, dim, heads)
#define NAME_MERGE_OF(kv) attention_##kv##_merge
#define NAME_MERGE(kv) NAME_MERGE_OF(kv)
// Heads of up to `dim` elements, up to `heads` query heads a block, and how many blocks a multiprocessor
// shall have room for: registers must suffice.
#define ATTENTION(dim, heads, blocks, warps, lanes, size)                        \
    KERNEL_BLOCKS(NAME(KV, dim, heads), AttentionParams, (warps) * 32, blocks) { \
        attend<warps, lanes, size, heads>(p);                                    \
    }
// Of three blocks with eight heads, registers suffice for some.
#if __CUDA_ARCH__ >= 900
constexpr u32 OF_EIGHT = Cache::BYTES == 2 ? 3 : 2;
#else
constexpr u32 OF_EIGHT = 2;
#endif

ATTENTION(64, 1, 2, 8, 8, 8)
ATTENTION(64, 4, 2, 8, 8, 8)
ATTENTION(64, 8, OF_EIGHT, 4, 8, 8)
ATTENTION(128, 1, 2, 8, 8, 16)
ATTENTION(128, 4, 2, 8, 16, 8)
ATTENTION(128, 8, OF_EIGHT, 4, 16, 8)
ATTENTION(256, 1, 2, 8, 16, 16)
ATTENTION(256, 4, 2, 8, 32, 8)
ATTENTION(256, 8, 2, 4, 32, 8)

constexpr u32 MERGE_WARPS = 8;

// Adds a row's splits for one head: warp w those of every eighth from number w on, then the warps in order.
KERNEL(NAME_MERGE(KV), AttentionParams, MERGE_WARPS * 32) {
    SHARED(f32x4, shares, MERGE_WARPS * 64);
    const u32 slot = block_y(), row_at = p.first_row + slot, head = block_x();
    let_successor_start();
    if (row_at >= p.step.counts->rows) return wait_for_predecessor();
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
