// What is ordered before what: every agent's last point of its run that an agent knows to be past.
//
// Agents are the block's threads and those that act on their own: each warpgroup's products, and each
// barrier's copies. Time counts what orders accesses, so that those before an event have its time or an
// earlier one, those after it a later one.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace simt {

using Time = uint32_t;
// Agents' numbers: threads from 0, products of warpgroups, copies of barriers.
using Agent = uint16_t;
constexpr Agent PRODUCTS_AGENT = 1024;
constexpr Agent COPIES_AGENT = PRODUCTS_AGENT + 8;

// Times by place (see `place`); what is beyond its end is 0. Never changed once others may hold it.
using Times = std::vector<Time>;
using Known = std::shared_ptr<const Times>;

// Where an agent's time stands, in a block of so many threads.
inline size_t place(Agent agent, unsigned threads) {
    return agent < PRODUCTS_AGENT ? agent : agent - PRODUCTS_AGENT + threads;
}

inline Time at(const Times& times, size_t place) { return place < times.size() ? times[place] : 0; }

// to[place] becomes at least `time`.
inline void raise(Times& to, size_t place, Time time) {
    if (place >= to.size()) to.resize(place + 1);
    if (to[place] < time) to[place] = time;
}

inline void join(Times& to, const Times& from) {
    if (to.size() < from.size()) to.resize(from.size());
    Time* a = to.data();
    const Time* b = from.data();
    for (size_t i = 0; i < from.size(); i++) a[i] = a[i] < b[i] ? b[i] : a[i];
}

// Joins of what threads know, which many threads ask for one after the other.
class Joins {
  public:
    Known operator()(const Known& a, const Known& b) {
        if (!a || a == b) return b;
        if (!b) return a;
        for (const Entry& entry : entries) {
            if (entry.a == a && entry.b == b) return entry.joined;
        }
        auto joined = std::make_shared<Times>(*a);
        join(*joined, *b);
        Entry& entry = entries[next++ % 8];
        entry = {a, b, joined};
        // As equals, for those that come to the same by another way.
        if (*joined == *a) entry.joined = a;
        if (*joined == *b) entry.joined = b;
        return entry.joined;
    }
    void clear() {
        for (Entry& entry : entries) entry = {};
    }

  private:
    struct Entry {
        Known a, b, joined;
    };
    Entry entries[8];
    unsigned next = 0;
};

// What an agent knows, as an access needs it.
struct View {
    Agent agent;
    unsigned threads;
    // What all know: of threads the block's last barrier, of others its start; of its own warp's
    // threads the warp's last barrier.
    Time block, start, warp;
    // Of the thread's own warpgroup's products: the last that it has waited for.
    Time products;
    const Times* known;

    // Whether what an agent did at a time is past for this one.
    bool past(Agent other, Time time) const {
        if (time <= (other < PRODUCTS_AGENT ? block : start) || other == agent) return true;
        return past_slowly(other, time);
    }

  private:
    bool past_slowly(Agent other, Time time) const {
        if (agent < PRODUCTS_AGENT) {
            if (other < PRODUCTS_AGENT && other / 32 == agent / 32 && time <= warp) return true;
            if (other == PRODUCTS_AGENT + agent / 128 && time <= products) return true;
        }
        return known && time <= at(*known, place(other, threads));
    }
};

}  // namespace simt
