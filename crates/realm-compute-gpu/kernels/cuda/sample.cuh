// What sampling is made of: candidates in the order of their ids, a filter that keeps a prefix of their
// rank order (likeliest first, of equals the lowest id), and sums that are exact, being integers, so that
// no result depends on the order in which threads add.
#pragma once
#include "step.cuh"

constexpr u32 THREADS = 1024;
constexpr u32 WARPS = THREADS / 32;
// Candidates that the block's list holds.
constexpr u32 LISTED = 4096;

// What a block keeps in shared memory.
struct Scratch {
    // Candidates: the id, and below it the logit's bits.
    u64 list[LISTED];
    // Sums by digit, in halves: there is no 64-bit addition in shared memory.
    u32 low[256];
    u32 high[256];
    // A warp each.
    u64 sums[WARPS];
    // The digit that was found, the sum above it, and its own.
    u64 above;
    u64 own;
    u32 digit;
    u32 listed;
};
constexpr u32 NO_DIGIT = 0xffffffff;

DEVICE u32 count_bits(u32 v) {
    v -= v >> 1 & 0x55555555;
    v = (v & 0x33333333) + (v >> 2 & 0x33333333);
    return ((v + (v >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
}

// Keys order as logits do, -0 before +0; what may never be chosen, NaN and minus infinity, has none: 0.
constexpr u32 LOWEST_KEY = 0x00800000;
DEVICE u32 key_of(float logit) {
    const u32 bits = float_bits(logit);
    const u32 key = bits >> 31 ? ~bits : bits | 0x80000000;
    return logit >= -3.402823466e38f ? key : 0;
}
DEVICE float logit_of(u32 key) { return bits_float(key >> 31 ? key & 0x7fffffff : ~key); }

// Logits with ids: the entries of a list that is sorted by id, or a whole row.
struct Candidates {
    const float* row;
    const u64* list;
    u32 count;

    DEVICE float logit(u32 at) const { return list ? bits_float(u32(list[at])) : row[at]; }
    DEVICE u32 id(u32 at) const { return list ? u32(list[at] >> 32) : at; }
};

// Keeps the keys above `key`, and those equal to it at the places up to `last`.
struct Filter {
    u32 key;
    u32 last;

    DEVICE bool keeps(u32 other, u32 at) const {
        return other > key || (other == key && at <= last);
    }
};
constexpr Filter ALL = {LOWEST_KEY, 0xffffffff};

// A candidate's share of the probability, as a multiple of 1 / one: the best has `one`.
struct Weight {
    static constexpr bool small = false;
    float best;
    // Of the temperature.
    double inverse;
    double one;

    DEVICE u64 operator()(float logit) const {
        const double power = double(logit - best) * inverse;
        // Below, it rounds to nothing whatever `one` is, which is at most 2^52.
        return power > -37.5 ? u64(exp(power) * one + 0.5) : 0;
    }
};

// A candidate counts as one.
struct One {
    static constexpr bool small = true;
    DEVICE u64 operator()(float) const { return 1; }
};

// Sums of the lanes up to each.
DEVICE u64 warp_scan(u64 sum) {
    for (u32 n = 1; n < 32; n *= 2) {
        const u64 other = shuffle(sum, (lane() - n) % 32);
        if (lane() >= n) sum += other;
    }
    return sum;
}

DEVICE u64 warp_sum(u64 sum) {
    for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    return sum;
}

// The warps' values, one a lane, in every warp.
DEVICE u64 gather_warps(u64 value, Scratch& s) {
    sync_block();
    if (lane() == 0) s.sums[warp()] = value;
    sync_block();
    return s.sums[lane()];
}

// The sum over all threads.
DEVICE u64 block_sum(u64 sum, Scratch& s) { return warp_sum(gather_warps(warp_sum(sum), s)); }

DEVICE u64 block_max(u64 value, Scratch& s) {
    for (u32 mask = 16; mask > 0; mask /= 2) value = max(value, shuffle_xor(value, mask));
    value = gather_warps(value, s);
    for (u32 mask = 16; mask > 0; mask /= 2) value = max(value, shuffle_xor(value, mask));
    return value;
}

// The first place up to which the sum of measure(place) exceeds goal(sum of all), where there is one.
// Each round finds the warp whose part holds the place, then the parts of that.
template <class Measure, class Goal>
DEVICE u32 first_beyond(u32 count, Measure measure, Goal goal_of, Scratch& s) {
    u32 start = 0, length = count;
    u64 before = 0, goal = 0;
    for (bool first = true;; first = false) {
        const u32 part = (length + WARPS - 1) / WARPS;
        const u32 from = min(warp() * part, length), to = min(from + part, length);
        u64 sum = 0;
        for (u32 at = from + lane(); at < to; at += 32) sum += measure(start + at);
        const u64 own = gather_warps(warp_sum(sum), s);
        const u64 upto = warp_scan(own);
        if (first) goal = goal_of(shuffle(upto, 31));
        const u32 found = min(count_bits(ballot(before + upto <= goal)), (length - 1) / part);
        before += shuffle(upto - own, found);
        start += found * part;
        length = min(part, length - found * part);
        if (length == 1) return start;
    }
}

// Adds to a digit's sum; small values never carry.
template <bool SMALL>
DEVICE void add_to_digit(u32 digit, u64 value, Scratch& s) {
    if constexpr (SMALL) {
        atomic_add(&s.low[digit], u32(value));
        return;
    }
    const u32 old = atomic_add(&s.low[digit], u32(value));
    const u32 high = u32(value >> 32) + (old + u32(value) < old ? 1 : 0);
    if (high) atomic_add(&s.high[digit], high);
}

// The digit, from the highest, at which the sums reach `wanted`, counting from `above`. One warp's work.
DEVICE void find_digit(u64 above, u64 wanted, Scratch& s) {
    const auto sum_of = [&](u32 digit) { return u64(s.high[digit]) << 32 | s.low[digit]; };
    const u32 top = 255 - 8 * lane();
    u64 own = 0;
    for (u32 i = 0; i < 8; i++) own += sum_of(top - i);
    const u64 upto = above + warp_scan(own);
    if (lane() == 31 && upto < wanted) s.digit = NO_DIGIT;
    u64 sum = upto - own;
    if (sum >= wanted || upto < wanted) return;
    for (u32 i = 0; i < 8; i++) {
        const u64 here = sum_of(top - i);
        if (sum + here >= wanted) {
            s.digit = top - i;
            s.above = sum;
            s.own = here;
            return;
        }
        sum += here;
    }
}

// Narrows a filter to the fewest of the likeliest whose measures reach `wanted`, which is not 0. False,
// and the filter stays, where all of them do not. A selection by the keys' digits, highest first.
template <class Measure>
DEVICE bool keep_likeliest(const Candidates& from, Filter& filter, u64 wanted, Measure measure,
                           Scratch& s) {
    u32 key = 0;
    u64 above = 0, equals = 0;
#pragma unroll 1
    for (u32 shift = 24; shift < 32; shift -= 8) {
        sync_block();
        if (thread_index() < 256) s.low[thread_index()] = s.high[thread_index()] = 0;
        sync_block();
#pragma unroll 1
        for (u32 at = thread_index(); at < from.count; at += THREADS) {
            const float logit = from.logit(at);
            const u32 other = key_of(logit);
            const bool within = shift == 24 || (other ^ key) >> (shift + 8) == 0;
            if (within && filter.keeps(other, at)) {
                add_to_digit<Measure::small>(other >> shift & 255, measure(logit), s);
            }
        }
        sync_block();
        if (warp() == 0) find_digit(above, wanted, s);
        sync_block();
        if (s.digit == NO_DIGIT) return false;
        key |= s.digit << shift;
        above = s.above;
        equals = s.own;
    }
    // Equals measure the same, so that their number is the sum divided.
    const u64 each = measure(logit_of(key));
    const u64 needed = (wanted - above + each - 1) / each;
    u32 last = key == filter.key ? filter.last : 0xffffffff;
    if (needed * each < equals) {
        const auto equal = [&](u32 at) -> u64 {
            return key_of(from.logit(at)) == key && filter.keeps(key, at);
        };
        last = first_beyond(from.count, equal, [&](u64) { return needed - 1; }, s);
    }
    filter = {key, last};
    return true;
}

// Sorts the list, whose length is no power of two: the places up to the next one are filled up.
DEVICE void sort_list(u32 count, Scratch& s) {
    u32 size = 1;
    while (size < count) size *= 2;
    for (u32 at = count + thread_index(); at < size; at += THREADS) s.list[at] = ~0ull;
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 step = run / 2; step > 0; step /= 2) {
            sync_block();
            for (u32 pair = thread_index(); pair < size / 2; pair += THREADS) {
                const u32 left = (pair & ~(step - 1)) * 2 + (pair & (step - 1));
                const u64 a = s.list[left], b = s.list[left + step];
                if ((a > b) == ((left & run) == 0)) {
                    s.list[left] = b;
                    s.list[left + step] = a;
                }
            }
        }
    }
    sync_block();
}

// Lists a row's candidates from the key `cut` on, and returns how many there are; more than LISTED are not
// listed.
DEVICE u32 list_from(const float* row, u32 vocabulary, u32 cut, Scratch& s) {
    constexpr u32 AHEAD = 8;
    sync_block();
    if (thread_index() == 0) s.listed = 0;
    sync_block();
    for (u32 start = 0; start < vocabulary; start += AHEAD * THREADS) {
        float logits[AHEAD];
        bool hit = false;
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            const u32 at = start + i * THREADS + thread_index();
            logits[i] = at < vocabulary ? row[at] : bits_float(0xff800000);
            hit |= key_of(logits[i]) >= cut;
        }
        if (!any(hit)) continue;
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            const u32 at = start + i * THREADS + thread_index();
            const bool listed = key_of(logits[i]) >= cut;
            const u32 votes = ballot(listed);
            if (votes == 0) continue;
            u32 place = lane() == 0 ? atomic_add(&s.listed, count_bits(votes)) : 0;
            place = shuffle(place, 0) + count_bits(votes & ((1u << lane()) - 1));
            if (listed && place < LISTED) s.list[place] = u64(at) << 32 | float_bits(logits[i]);
        }
    }
    sync_block();
    const u32 count = s.listed;
    if (count <= LISTED) sort_list(count, s);
    return count;
}

// realm_core::sampling::uniform, as a multiple of 2^-24.
DEVICE u32 uniform(u32 position, u32 seed_low, u32 seed_high) {
    u32 a = position, b = 0, c = 0, d = 0, k0 = seed_low, k1 = seed_high;
    for (int round = 0; round < 10; round++) {
        const u64 x = u64(a) * 0xd2511f53, y = u64(c) * 0xcd9e8d57;
        a = u32(y >> 32) ^ b ^ k0;
        b = u32(y);
        c = u32(x >> 32) ^ d ^ k1;
        d = u32(x);
        k0 += 0x9e3779b9;
        k1 += 0xbb67ae85;
    }
    return a >> 8;
}
