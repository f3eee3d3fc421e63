// The next token of each output row: realm_core::sampling on the device. A block takes a row.
#include "sample.cuh"

struct SampleParams {
    // Rows of `vocabulary`.
    const float* logits;
    const Counts* counts;
    const Sampling* sampling;
    u32* sampled;
    u32 vocabulary;
    u32 unused;
};

constexpr u32 NO_TOKEN = 0xffffffff;
// key_of(infinity).
constexpr u32 INFINITE_KEY = 0xff800000;
// A share of the threads' own best candidates that is likely to hold all that top-p keeps.
constexpr u32 LIKELY = 768;

struct Best {
    float logit;
    u32 id;

    // Ids come in ascending order: of equals the first one stays. NaN never comes.
    DEVICE void offer(float other, u32 at) {
        if (other > logit) {
            logit = other;
            id = at;
        }
    }
};

// The likeliest of the candidates that are this thread's.
DEVICE Best best_of_thread(const float* row, u32 vocabulary) {
    constexpr u32 AHEAD = 8;
    const float none = bits_float(0xff800000);
    Best best = {none, NO_TOKEN};
    if (vocabulary % 4 != 0) {
        for (u32 at = thread_index(); at < vocabulary; at += THREADS) best.offer(row[at], at);
        return best;
    }
    const f32x4* packs = reinterpret_cast<const f32x4*>(row);
    for (u32 start = thread_index(); start < vocabulary / 4; start += AHEAD * THREADS) {
        f32x4 x[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            const u32 at = start + i * THREADS;
            x[i] = at < vocabulary / 4 ? packs[at] : f32x4{none, none, none, none};
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            const u32 at = 4 * (start + i * THREADS);
            best.offer(x[i].x, at);
            best.offer(x[i].y, at + 1);
            best.offer(x[i].z, at + 2);
            best.offer(x[i].w, at + 3);
        }
    }
    return best;
}

// The lowest key of a candidate that min-p keeps.
DEVICE u32 least_key(float best, float min_p) {
    const double least = double(best) + log(double(min(min_p, 1.0f)));
    if (least < -3.402823466e38) return LOWEST_KEY;
    const float near = float(least);
    // The two zeros are the same to min-p, and the first key is that of -0.
    const u32 key = near == 0.0f ? 0x7fffffff : key_of(near);
    if (double(near) >= least) return key;
    return near == 0.0f ? 0x80000001 : key + 1;
}

// A key from which on there are at least `wanted` candidates, if there are so many threads with one: the
// `wanted`-th likeliest of the threads' best.
DEVICE u32 likely_key(float best_of_thread, u32 wanted, Scratch& s) {
    sync_block();
    s.list[thread_index()] = float_bits(best_of_thread);
    Filter filter = ALL;
    keep_likeliest(Candidates{nullptr, s.list, THREADS}, filter, wanted, One{}, s);
    return filter.key;
}

// The choice among the candidates of a row whose likeliest is `best`.
DEVICE u32 choose(const float* row, u32 vocabulary, const Sampling& how, float best, float mine,
                  Scratch& s) {
    // Sums of `vocabulary` weights fit 63 bits.
    u32 bits = 52;
    while (vocabulary > 1ull << (63 - bits)) bits--;
    Weight weight = {best, 1.0, double(1ull << bits)};

    const u32 top_k = how.top_k < vocabulary ? how.top_k : 0;
    const bool top_p = how.top_p < 1.0f;
    const u32 floor = how.min_p > 0.0f ? least_key(best, how.min_p) : LOWEST_KEY;

    const Candidates all = {row, nullptr, vocabulary};
    Candidates from = all;
    u32 cut = floor;
    if (vocabulary > LISTED && top_k <= THREADS) {
        // A list of those above a cut saves passes over the row. Of top-k it holds all, as top-p wants
        // their sum, of min-p too; of top-p alone all as a rule.
        if (top_k > 0) {
            cut = likely_key(mine, top_k, s);
        } else if (top_p) {
            cut = max(floor, likely_key(mine, LIKELY, s));
        }
        if (cut > LOWEST_KEY) {
            const u32 listed = list_from(row, vocabulary, cut, s);
            if (listed <= LISTED) from = {nullptr, s.list, listed};
        }
    }

    Filter filter = ALL;
    if (top_k > 0) keep_likeliest(from, filter, top_k, One{}, s);
    if (top_p) {
        const Candidates whole = {row, top_k > 0 ? from.list : nullptr,
                                  top_k > 0 ? from.count : vocabulary};
        u64 total = 0;
        for (u32 at = thread_index(); at < whole.count; at += THREADS) {
            const float logit = whole.logit(at);
            if (filter.keeps(key_of(logit), at)) total += weight(logit);
        }
        total = block_sum(total, s);
        const double share = ceil(double(how.top_p) * double(total));
        const u64 wanted = share > 1.0 ? u64(share) : 1;
        // A list of all that top-k or min-p keeps may be too little for top-p to take anything from it.
        const bool guessed = top_k == 0 && cut > floor;
#pragma unroll 1
        while (!keep_likeliest(from, filter, wanted, weight, s) && guessed && from.list) from = all;
    }
    if (floor > filter.key) filter = {floor, 0xffffffff};

    weight.inverse = 1.0 / double(how.temperature);
    const u64 random = uniform(how.position, how.seed_low, how.seed_high);
    const auto share = [&](u32 at) -> u64 {
        const float logit = from.logit(at);
        if (!filter.keeps(key_of(logit), at)) return 0;
        return weight(logit);
    };
    const auto goal = [&](u64 total) -> u64 {
        // total * random / 2^24, rounded down.
        return (total >> 24) * random + ((total & 0xffffff) * random >> 24);
    };
    return from.id(first_beyond(from.count, share, goal, s));
}

KERNEL(sample, SampleParams, THREADS) {
    SHARED(Scratch, scratch, 1);
    Scratch& s = scratch[0];
    let_successor_start();
    // Written before the step began.
    const u32 outputs = p.counts->outputs;
    wait_for_predecessor();
    const u32 output = block_x();
    if (output >= outputs) return;

    const Sampling how = p.sampling[output];
    const float* row = p.logits + size_t(output) * p.vocabulary;
    const Best mine = best_of_thread(row, p.vocabulary);
    // The lowest id of equals wins, so that ids count down; adding 0 makes one zero of the two.
    const u64 rank = u64(key_of(mine.logit + 0.0f)) << 32 | (NO_TOKEN - mine.id);
    const u64 best = block_max(rank, s);
    // An infinite logit is no choice: the model or its arithmetic broke down.
    const bool any = best != 0 && u32(best >> 32) < INFINITE_KEY;
    u32 token = any ? NO_TOKEN - u32(best) : NO_TOKEN;
    const bool greedy = !(how.temperature > 0.0f) || how.top_k == 1;
    if (!greedy && any) {
        token = choose(row, p.vocabulary, how, logit_of(u32(best >> 32)), mine.logit, s);
    }
    if (thread_index() == 0) p.sampled[output] = token;
}
