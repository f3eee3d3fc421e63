// What warps compute together.
#include <cstdint>
#include <cstring>

#include "numbers.h"
#include "worker.h"

namespace simt {

void sync_warp() { collective(Op::SyncWarp, nullptr, nullptr); }

namespace {

struct Shuffle {
    unsigned long long value;
    unsigned from;
};

void compute_shuffle(void* const* operands) {
    unsigned long long values[32];
    for (int i = 0; i < 32; i++) values[i] = static_cast<Shuffle*>(operands[i])->value;
    for (int i = 0; i < 32; i++) {
        auto* lane = static_cast<Shuffle*>(operands[i]);
        lane->value = values[lane->from];
    }
}

struct Ballot {
    bool value;
    unsigned result;
};

void compute_ballot(void* const* operands) {
    unsigned result = 0;
    for (int i = 0; i < 32; i++)
        result |= static_cast<unsigned>(static_cast<Ballot*>(operands[i])->value) << i;
    for (int i = 0; i < 32; i++) static_cast<Ballot*>(operands[i])->result = result;
}

struct LoadMatrix {
    Registers registers;
    const void* row;
    unsigned count;
    bool transposed;
};

void compute_load_matrix(void* const* operands) {
    const auto& first = *static_cast<LoadMatrix*>(operands[0]);
    for (unsigned m = 0; m < first.count; m++) {
        uint16_t matrix[8][8];
        for (unsigned i = 0; i < 8; i++)
            memcpy(matrix[i], static_cast<LoadMatrix*>(operands[8 * m + i])->row, 16);
        for (unsigned lane = 0; lane < 32; lane++) {
            const unsigned i = lane / 4, j = lane % 4 * 2;
            const unsigned low = first.transposed ? matrix[j][i] : matrix[i][j];
            const unsigned high = first.transposed ? matrix[j + 1][i] : matrix[i][j + 1];
            static_cast<LoadMatrix*>(operands[lane])->registers.r[m] = low | high << 16;
        }
    }
}

void compute_copy_bulk(void* const* operands) {
    const auto& first = *static_cast<BulkCopy*>(operands[0]);
    for (unsigned lane = 1; lane < 32; lane++) {
        const auto& other = *static_cast<BulkCopy*>(operands[lane]);
        if (other.to != first.to || other.from != first.from || other.bytes != first.bytes ||
            other.barrier != first.barrier)
            fail("lanes of a warp call copy_bulk with different operands");
    }
    worker->arrive(first.barrier, first.bytes);
    worker->copy_bulk(first);
}

struct Mma {
    Sums sums;
    unsigned a[4], b0, b1;
};

typedef float Four __attribute__((vector_size(16)));

template <bool BF16>
float value(unsigned bits) {
    if (BF16) return bits_float(bits << 16);
    return f16_value(static_cast<unsigned short>(bits));
}

// Products of two 16-bit floats are exact in f32; sums run over k in order.
template <bool BF16>
void compute_mma(void* const* operands) {
    float a[16][16];
    alignas(16) float b[16][8], d[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const auto& own = *static_cast<Mma*>(operands[lane]);
        const unsigned g = lane / 4, c = lane % 4 * 2;
        for (unsigned i = 0; i < 4; i++) {
            float* to = &a[g + i % 2 * 8][c + i / 2 * 8];
            to[0] = value<BF16>(own.a[i] & 0xffff);
            to[1] = value<BF16>(own.a[i] >> 16);
            d[g + i / 2 * 8][c + i % 2] = own.sums.d[i];
        }
        b[c][g] = value<BF16>(own.b0 & 0xffff);
        b[c + 1][g] = value<BF16>(own.b0 >> 16);
        b[c + 8][g] = value<BF16>(own.b1 & 0xffff);
        b[c + 9][g] = value<BF16>(own.b1 >> 16);
    }
    for (unsigned row = 0; row < 16; row++) {
        auto* sums = reinterpret_cast<Four*>(d[row]);
        Four low = sums[0], high = sums[1];
        for (unsigned k = 0; k < 16; k++) {
            const auto* columns = reinterpret_cast<const Four*>(b[k]);
            low += a[row][k] * columns[0];
            high += a[row][k] * columns[1];
        }
        sums[0] = low;
        sums[1] = high;
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned g = lane / 4, c = lane % 4 * 2;
        float* to = static_cast<Mma*>(operands[lane])->sums.d;
        for (unsigned i = 0; i < 4; i++) to[i] = d[g + i / 2 * 8][c + i % 2];
    }
}

}  // namespace

void copy_bulk_stream(void* shared, const void* global, size_t bytes, void* barrier) {
    BulkCopy operands = {static_cast<unsigned char*>(shared),
                         static_cast<const unsigned char*>(global), bytes, barrier};
    collective(Op::CopyBulk, compute_copy_bulk, &operands);
}

unsigned shuffle(unsigned value, unsigned from) {
    Shuffle operands = {value, from};
    collective(Op::Shuffle, compute_shuffle, &operands);
    return static_cast<unsigned>(operands.value);
}

unsigned long long shuffle8(unsigned long long value, unsigned from) {
    Shuffle operands = {value, from};
    collective(Op::Shuffle8, compute_shuffle, &operands);
    return operands.value;
}

unsigned ballot(bool value) {
    Ballot operands = {value, 0};
    collective(Op::Ballot, compute_ballot, &operands);
    return operands.result;
}

Registers load_matrix(unsigned count, const void* row, bool transposed) {
    if (thread() % 32 < 8 * count) access(row, 16, {Kind::Read, Where::Shared, 16, "load_matrix"});
    LoadMatrix operands = {{}, row, count, transposed};
    const Op op = transposed ? (count == 2 ? Op::LoadMatrix2T : Op::LoadMatrix4T)
                             : (count == 2 ? Op::LoadMatrix2 : Op::LoadMatrix4);
    collective(op, compute_load_matrix, &operands);
    return operands.registers;
}

Sums mma_bf16(Sums d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
              unsigned b1) {
    Mma operands = {d, {a0, a1, a2, a3}, b0, b1};
    collective(Op::MmaBf16, compute_mma<true>, &operands);
    return operands.sums;
}

Sums mma_f16(Sums d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    Mma operands = {d, {a0, a1, a2, a3}, b0, b1};
    collective(Op::MmaF16, compute_mma<false>, &operands);
    return operands.sums;
}

}  // namespace simt
