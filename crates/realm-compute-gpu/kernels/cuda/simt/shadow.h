// Who touched shared memory last, to find what is touched by two threads with no barrier between.
#pragma once
#include <cstdint>
#include <vector>

namespace simt {

enum class Kind : unsigned char { Read, Write, Atomic };

// A point of a thread's run. Barriers of the block and of the warp count.
struct Moment {
    uint32_t block, warp;
    uint16_t thread;
};

class Shadow {
  public:
    explicit Shadow(size_t bytes) : words((bytes + 3) / 4) {}

    // Notes an access and returns the thread that it races with, or -1.
    int touch(size_t offset, size_t bytes, Kind kind, const Moment& now) {
        for (const size_t end = offset + bytes; offset < end;) {
            const size_t in_word = offset % 4,
                         step = 4 - in_word < end - offset ? 4 - in_word : end - offset;
            const auto mask = static_cast<uint8_t>(((1u << step) - 1) << in_word);
            const int other = touch(words[offset / 4], mask, kind, now);
            if (other >= 0) return other;
            offset += step;
        }
        return -1;
    }

  private:
    struct Touch {
        Moment when;
        uint8_t mask;
        Kind kind;
    };
    struct Word {
        Touch write, read, other_read;
    };

    static bool same(const Moment& a, const Moment& b) {
        return a.block == b.block && a.warp == b.warp && a.thread == b.thread;
    }

    static bool races(const Touch& past, uint8_t mask, Kind kind, const Moment& now) {
        return (past.mask & mask) && past.when.block == now.block &&
               past.when.thread != now.thread &&
               !(past.when.thread / 32 == now.thread / 32 && past.when.warp < now.warp) &&
               !(past.kind == Kind::Atomic && kind == Kind::Atomic);
    }

    static int touch(Word& word, uint8_t mask, Kind kind, const Moment& now) {
        if (races(word.write, mask, kind, now)) return word.write.when.thread;
        if (kind == Kind::Read) {
            // Two readers are remembered: a write may follow in order on one of them.
            if (word.read.when.block == now.block && word.read.when.thread != now.thread)
                word.other_read = word.read;
            if (same(word.read.when, now)) mask |= word.read.mask;
            word.read = {now, mask, kind};
            return -1;
        }
        if (races(word.read, mask, kind, now)) return word.read.when.thread;
        if (races(word.other_read, mask, kind, now)) return word.other_read.when.thread;
        if (same(word.write.when, now) && word.write.kind == kind) mask |= word.write.mask;
        word.write = {now, mask, kind};
        return -1;
    }

    std::vector<Word> words;
};

}  // namespace simt
