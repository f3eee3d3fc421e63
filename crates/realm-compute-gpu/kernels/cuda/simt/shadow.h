// Who touched shared memory last, to find what is touched by two agents with no barrier between.
#pragma once
#include <cstdint>
#include <vector>

#include "known.h"

namespace simt {

enum class Kind : unsigned char { Read, Write, Atomic };

class Shadow {
  public:
    // An access, as it is remembered. What an agent did after `since` is as one: it told nobody of it.
    struct Toucher {
        Agent agent;
        Time now, since;
    };
    struct Touch {
        Time when;
        Agent agent;
        uint8_t mask;
        Kind kind;
    };

    explicit Shadow(size_t bytes) : words((bytes + 3) / 4) {}

    // Notes an access by an agent, with the eyes of `view`, and returns what it races with, or null.
    const Touch* touch(size_t offset, size_t bytes, Kind kind, const View& view,
                       const Toucher& toucher) {
        for (const size_t end = offset + bytes; offset < end;) {
            const size_t in_word = offset % 4,
                         step = 4 - in_word < end - offset ? 4 - in_word : end - offset;
            const auto mask = static_cast<uint8_t>(((1u << step) - 1) << in_word);
            if (const Touch* other = touch(words[offset / 4], mask, kind, view, toucher))
                return other;
            offset += step;
        }
        return nullptr;
    }

    // Calls `visit` for who wrote to a range last, for each word of it.
    template <class F>
    void writers(size_t offset, size_t bytes, F visit) const {
        for (size_t i = offset / 4; i < (offset + bytes + 3) / 4; i++) visit(words[i].write);
    }

  private:
    struct Word {
        Touch write, read, other_read;
    };

    static bool races(const Touch& past, uint8_t mask, Kind kind, const View& view) {
        return !view.past(past.agent, past.when) && (past.mask & mask) &&
               !(past.kind == Kind::Atomic && kind == Kind::Atomic);
    }

    static bool as_one(const Touch& past, const Toucher& toucher) {
        return past.agent == toucher.agent && past.when > toucher.since;
    }

    static const Touch* touch(Word& word, uint8_t mask, Kind kind, const View& view,
                              const Toucher& toucher) {
        if (races(word.write, mask, kind, view)) return &word.write;
        if (kind == Kind::Read) {
            // Two readers are remembered: a write may follow in order on one of them.
            if (!view.past(word.read.agent, word.read.when)) word.other_read = word.read;
            if (as_one(word.read, toucher)) mask |= word.read.mask;
            word.read = {toucher.now, toucher.agent, mask, kind};
            return nullptr;
        }
        if (races(word.read, mask, kind, view)) return &word.read;
        if (races(word.other_read, mask, kind, view)) return &word.other_read;
        if (as_one(word.write, toucher) && word.write.kind == kind) mask |= word.write.mask;
        word.write = {toucher.now, toucher.agent, mask, kind};
        return nullptr;
    }

    std::vector<Word> words;
};

}  // namespace simt
