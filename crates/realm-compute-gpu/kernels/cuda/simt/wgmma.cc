// Products of warpgroups: begun by 128 threads at once, computed when their warps wait.
#include <cstdio>
#include <cstring>

#include "numbers.h"
#include "worker.h"

namespace simt {

namespace {

// What a descriptor says, in bytes from the start of the block's shared memory.
struct Tile {
    size_t start, leading, stride;
};

Tile decode(unsigned long long descriptor) {
    return {static_cast<size_t>(descriptor & 0x3fff) << 4,
            static_cast<size_t>(descriptor >> 16 & 0x3fff) << 4,
            static_cast<size_t>(descriptor >> 32 & 0x3fff) << 4};
}

// The 128-byte swizzle: of addresses, so that tiles begin at multiples of 1024.
size_t swizzled(size_t at) { return at ^ (at >> 3 & 0x70); }

// What is wrong with a descriptor of `rows` rows of 16 k, or null.
const char* problem(unsigned long long descriptor, bool transposed, unsigned rows) {
    const Tile tile = decode(descriptor);
    if (descriptor & ~0x40003fff3fff3fffull || descriptor >> 62 != 1)
        return "a descriptor that tile_descriptor has not made";
    if (tile.start % 1024 >= 128)
        return "a descriptor of a tile that does not begin at a multiple of 1024";
    const size_t row = tile.start % 128 + (transposed ? (rows < 64 ? rows : 64) * 2 : 32);
    if (row > 128) return "a descriptor of rows that cross 128 bytes";
    if (tile.stride % 1024 || tile.stride == 0)
        return "a descriptor whose stride_bytes is no multiple of 1024";
    if (transposed && rows > 64 && (tile.leading % 1024 || tile.leading == 0))
        return "a descriptor whose leading_bytes is no multiple of 1024";
    return nullptr;
}

// Calls `visit(row, k, address)` for each 16-byte unit of `rows` rows of 16 k.
template <class F>
void units(const Tile& tile, bool transposed, unsigned first, unsigned rows, F visit) {
    if (transposed) {
        for (unsigned k = 0; k < 16; k++) {
            for (unsigned n = 0; n < rows; n += 8) {
                visit(n, k, swizzled(tile.start + n / 64 * tile.leading + k / 8 * tile.stride +
                                     k % 8 * 128 + n % 64 * 2));
            }
        }
        return;
    }
    for (unsigned i = first; i < first + rows; i++) {
        for (unsigned k = 0; k < 16; k += 8)
            visit(i - first, k, swizzled(tile.start + i / 8 * tile.stride + i % 8 * 128 + k * 2));
    }
}

float value(bool bf16, uint16_t bits) {
    return bf16 ? bits_float(static_cast<unsigned>(bits) << 16) : f16_value(bits);
}

typedef float Four __attribute__((vector_size(16)));

// Sums run over k in order, as those of mma do. `b` is [16][n], `d` [16][n].
void multiply_rows(float* d, const float (*a)[16], const float* b, unsigned n) {
    for (unsigned j = 0; j < n; j += 16) {
        for (unsigned row = 0; row < 16; row++) {
            Four sums[4];
            memcpy(sums, d + row * n + j, sizeof sums);
            for (unsigned k = 0; k < 16; k++) {
                Four columns[4];
                memcpy(columns, b + k * n + j, sizeof columns);
                for (unsigned i = 0; i < 4; i++) sums[i] += a[row][k] * columns[i];
            }
            memcpy(d + row * n + j, sums, sizeof sums);
        }
    }
}

}  // namespace

uint64_t Worker::tile_descriptor(const void* at, size_t leading, size_t stride) {
    const auto* address = static_cast<const unsigned char*>(at);
    if (address < shared || address >= shared + SHARED_SPACE)
        fail("tile_descriptor of what is not in shared memory");
    return uint64_t(1) << 62 | uint64_t(stride >> 4 & 0x3fff) << 32 |
           uint64_t(leading >> 4 & 0x3fff) << 16 |
           (static_cast<uint64_t>(address - shared) >> 4 & 0x3fff);
}

void Worker::wgmma(const Product& product) {
    Warpgroup& group = warpgroups[current / WARPGROUP];
    group.operands[current % WARPGROUP] = &product;
    if (++group.arrived < WARPGROUP) {
        park(State::Warpgroup);
        change();
        return;
    }
    group.arrived = 0;
    const unsigned first = current / WARPGROUP * WARPGROUP;
    begin_products(group, first);
    for (unsigned i = first; i < first + WARPGROUP; i += 32) wake(i / 32, ~0u);
    if (random() % 2) change();
}

void Worker::wgmma_fence() {
    Products& products = fibers[current].products;
    products.fenced = products.a_fenced = true;
}

void Worker::wgmma_commit() {
    Products& products = fibers[current].products;
    products.groups++;
    // What a thread puts in a's registers from here on is not fenced yet.
    products.a_fenced = false;
}

// Refuses a product that its threads do not agree on, or that is not as the hardware needs it.
void Worker::check_product(const Warpgroup& group, unsigned first) {
    const Shape& shape = group.operands[0]->shape;
    const unsigned groups = fibers[first].products.groups;
    for (unsigned i = 0; i < WARPGROUP; i++) {
        const Shape& other = group.operands[i]->shape;
        const Products& products = fibers[first + i].products;
        if (other.n != shape.n || other.bf16 != shape.bf16 || other.transposed != shape.transposed ||
            other.add != shape.add || other.a_shared != shape.a_shared || other.a != shape.a ||
            other.b != shape.b)
            fail("threads of a warpgroup call wgmma with different operands");
        if (products.groups != groups) fail("threads of a warpgroup have called wgmma_commit unequally");
        if (!products.fenced) fail("a wgmma with no wgmma_fence since the last wgmma_wait");
        if (!shape.a_shared && !products.a_fenced)
            fail("a wgmma with A in registers and no wgmma_fence since the last wgmma_commit");
    }
    const char* wrong = problem(shape.b, shape.transposed, shape.n);
    if (!wrong && shape.a_shared) wrong = problem(shape.a, false, 64);
    if (wrong) simt::fail("wgmma: %s", wrong);
}

// Notes that the warpgroup reads its operands, with the eyes of each thread that knows less or more.
void Worker::touch_operands(const Shape& shape, unsigned first) {
    const auto agent = static_cast<Agent>(PRODUCTS_AGENT + first / WARPGROUP);
    const Times* last = nullptr;
    for (unsigned i = first; i < first + WARPGROUP; i++) {
        const Times* known = fibers[i].known.get();
        if (i > first && known == last) continue;
        last = known;
        const View view = {agent, launch->threads, block_time, start_time, 0, 0, known};
        const auto read = [&](unsigned, unsigned, size_t at) {
            touch_async(shared + at, 16, {Kind::Read, Where::Shared, 16, "wgmma"}, view, agent);
        };
        if (shape.a_shared) units(decode(shape.a), false, 0, 64, read);
        units(decode(shape.b), shape.transposed, 0, shape.n, read);
    }
}

// The sums that a warp's lanes have in registers, which are poison from here on.
Sums16* Worker::take_sums(Warp& warp, const Product* const* lanes, unsigned n) {
    for (auto& sums : warp.sums) {
        if (sums->d[0] != lanes[0]->d) continue;
        for (unsigned lane = 0; lane < 32; lane++) {
            if (sums->n != n || sums->d[lane] != lanes[lane]->d)
                simt::fail("a wgmma with other registers or of another shape while one is under way");
        }
        return sums.get();
    }
    warp.sums.push_back(std::make_unique<Sums16>());
    Sums16& sums = *warp.sums.back();
    sums.n = n;
    sums.under_way = 0;
    sums.rows.resize(16 * n);
    for (unsigned lane = 0; lane < 32; lane++) {
        float* d = sums.d[lane] = lanes[lane]->d;
        float* rows = &sums.rows[lane / 4 * n + lane % 4 * 2];
        for (unsigned j = 0; j < n / 8; j++) {
            memcpy(rows + 8 * j, d + 4 * j, 8);
            memcpy(rows + 8 * n + 8 * j, d + 4 * j + 2, 8);
        }
        memset(d, POISON, n / 2 * sizeof(float));
    }
    return &sums;
}

void Worker::begin_products(const Warpgroup& group, unsigned first) {
    check_product(group, first);
    const Shape& shape = group.operands[0]->shape;
    touch_operands(shape, first);
    const Time begun = event();
    for (unsigned w = 0; w < WARPGROUP / 32; w++) {
        Warp& warp = warps[first / 32 + w];
        const Product* const* lanes = group.operands + 32 * w;
        WarpProduct product = {shape, fibers[first].products.groups, begun, {}, nullptr};
        product.sums = take_sums(warp, lanes, shape.n);
        product.sums->under_way++;
        for (unsigned lane = 0; lane < 32; lane++)
            memcpy(product.a[lane], lanes[lane]->a, sizeof product.a[lane]);
        warp.products.push_back(product);
    }
}

void Worker::multiply(unsigned warp, const WarpProduct& product) {
    const Shape& shape = product.shape;
    const unsigned n = shape.n;
    float a[16][16];
    const bool bf16 = shape.bf16;
    if (shape.a_shared) {
        units(decode(shape.a), false, warp % 4 * 16, 16, [&](unsigned row, unsigned k, size_t at) {
            uint16_t bits[8];
            memcpy(bits, shared + at, 16);
            for (unsigned i = 0; i < 8; i++) a[row][k + i] = value(bf16, bits[i]);
        });
    } else {
        for (unsigned lane = 0; lane < 32; lane++) {
            for (unsigned i = 0; i < 4; i++) {
                float* to = &a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8];
                to[0] = value(bf16, static_cast<uint16_t>(product.a[lane][i]));
                to[1] = value(bf16, static_cast<uint16_t>(product.a[lane][i] >> 16));
            }
        }
    }
    alignas(16) float b[16 * 256];
    const size_t step = shape.transposed ? 1 : n;
    units(decode(shape.b), shape.transposed, 0, n, [&](unsigned column, unsigned k, size_t at) {
        uint16_t bits[8];
        memcpy(bits, shared + at, 16);
        float* to = b + k * n + column;
        if (bf16) {
            for (unsigned i = 0; i < 8; i++) to[i * step] = value(true, bits[i]);
        } else {
            for (unsigned i = 0; i < 8; i++) to[i * step] = value(false, bits[i]);
        }
    });
    float* d = product.sums->rows.data();
    if (!shape.add) memset(d, 0, 16 * n * sizeof(float));
    multiply_rows(d, a, b, n);
}

// Registers get what they were to get, if nobody has touched them meanwhile.
void Worker::give_sums(Warp& warp, Sums16& sums) {
    for (unsigned lane = 0; lane < 32; lane++) {
        float* d = sums.d[lane];
        for (unsigned i = 0; i < sums.n / 2; i++) {
            if (float_bits(d[i]) != ~0u)
                simt::fail("d[%u] of lane %u was written to while a wgmma was under way", i, lane);
        }
        const float* rows = &sums.rows[lane / 4 * sums.n + lane % 4 * 2];
        for (unsigned j = 0; j < sums.n / 8; j++) {
            memcpy(d + 4 * j, rows + 8 * j, 8);
            memcpy(d + 4 * j + 2, rows + 8 * sums.n + 8 * j, 8);
        }
    }
    for (auto& other : warp.sums) {
        if (other.get() != &sums) continue;
        std::swap(other, warp.sums.back());
        warp.sums.pop_back();
        break;
    }
}

void Worker::end_products(unsigned pending) {
    const unsigned index = current / 32;
    Warp& warp = warps[index];
    const unsigned groups = fibers[current].products.groups;
    size_t count = 0;
    Time done = fibers[current].products.done;
    while (count < warp.products.size() && warp.products[count].group + pending < groups) {
        const WarpProduct& product = warp.products[count++];
        multiply(index, product);
        done = product.begun;
        if (--product.sums->under_way == 0) give_sums(warp, *product.sums);
    }
    warp.products.erase(warp.products.begin(),
                        warp.products.begin() + static_cast<ptrdiff_t>(count));
    for (unsigned lane = 0; lane < 32; lane++) {
        Products& products = fibers[index * 32 + lane].products;
        products.fenced = products.a_fenced = false;
        products.done = done;
    }
}

void Worker::clear_products() {
    for (Warpgroup& group : warpgroups) group.arrived = 0;
    for (Warp& warp : warps) {
        warp.products.clear();
        warp.sums.clear();
    }
}

namespace {

void compute_wait(void* const* operands) {
    const unsigned pending = *static_cast<unsigned*>(operands[0]);
    for (unsigned lane = 1; lane < 32; lane++) {
        if (*static_cast<unsigned*>(operands[lane]) != pending)
            fail("lanes of a warp wait for different groups of wgmma");
    }
    worker->end_products(pending);
}

}  // namespace

// What the intrinsics call.

unsigned long long tile_descriptor(const void* shared, size_t leading, size_t stride) {
    return worker->tile_descriptor(shared, leading, stride);
}
void wgmma(const Product& product) { worker->wgmma(product); }
void wgmma_fence() { worker->wgmma_fence(); }
void wgmma_commit() { worker->wgmma_commit(); }
void wgmma_wait(unsigned pending) { collective(Op::WgmmaWait, compute_wait, &pending); }

}  // namespace simt
