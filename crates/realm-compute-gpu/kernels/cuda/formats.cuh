// The formats as their planes hold them (src/cuda/planes): one struct a format, which says how a
// tile of 16 weight rows lies in memory and decodes its scales; and what they share, the decoding
// of packed integers to fragments of a tensor core's matrix.
//
// Tile: chunks of 64 k, then the headers of the 16 rows. With g = lane / 4, c = lane % 4, a lane's
// 32 weights of a chunk are eight forms: form 2 s + r has row g + 8 r, k = 16 s + 2 c + {0, 8, 1,
// 9}, a byte each. A form's bytes 0 and 2 are one register of step s's fragment, bytes 1 and 3
// another.
#pragma once
#include "intrinsics.cuh"

DEVICE u32 rotate_right(u32 word, u32 bits) {
    return (word >> bits) | (word << ((32 - bits) & 31));
}
DEVICE u32 word_at(const u8* at) { return *reinterpret_cast<const u32*>(at); }
DEVICE u32x4 words_at(const u8* at) { return *reinterpret_cast<const u32x4*>(at); }
DEVICE u32 two_bytes_at(const u8* at) { return *reinterpret_cast<const u16*>(at); }
DEVICE float half_at(const u8* at) { return f16_value(*reinterpret_cast<const u16*>(at)); }

// d · (byte i of a word − zero), rounded once. The byte becomes a part of 32768 + byte, whose
// surplus times d has no more bits than a float: but where d is infinite, it makes the product NaN.
DEVICE float scaled(float d, u32 bytes, u32 i, u32 zero = 0) {
    const float byte = bits_float(byte_perm(bytes, 0x47000000, 0x7404 | i << 4));
    return fmaf(d, byte, -d * float(32768 + zero));
}

// Both halves of a word.
DEVICE constexpr u32 twice(u32 half) { return half | half << 16; }
// The four bytes of a word.
DEVICE constexpr u32 four_times(u32 byte) { return twice(byte | byte << 8); }

// What a product is computed in: how integers become fragments exactly. A field of `BITS` bits that
// ends at bit 6 of its byte is the top of a mantissa: with an exponent set, it reads BIAS + field.
struct InBf16 {
    template <u32 BITS>
    static constexpr u32 BIAS = BITS == 8 ? 0 : 1u << BITS;

    // Bits of an integer of at most 8 significant bits.
    static DEVICE constexpr u32 integer(u32 value) {
        u32 exponent = 0;
        while (value >> (exponent + 1)) exponent++;
        return value == 0 ? 0 : (127 + exponent) << 7 | ((value << 7 >> exponent) & 0x7f);
    }

    // Bytes 0 and 2 of a word as a register of a fragment. Bytes of 8 bits are 128 above the
    // weight: the lower seven give 128 to 255, and the upper one says whether to subtract 128 or
    // 256.
    template <u32 BITS>
    static DEVICE u32 expand(u32 word) {
        if constexpr (BITS == 8) {
            return sub_bf16x2(and_or(word, twice(0x7f), twice(0x4300)),
                              and_xor(word, twice(0x80), twice(0x4380)));
        } else {
            return and_or(word, twice(((1u << BITS) - 1) << (7 - BITS)),
                          twice(integer(1u << BITS)));
        }
    }

    static DEVICE u32 pack(float low, float high) { return pack_bf16(low, high); }
    static DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        mma_bf16(d, a, b0, b1);
    }
};

struct InF16 {
    template <u32 BITS>
    static constexpr u32 BIAS = BITS == 8 ? 1024 : 8u << BITS;

    // Bits of an integer of at most 11 significant bits.
    static DEVICE constexpr u32 integer(u32 value) {
        u32 exponent = 0;
        while (value >> (exponent + 1)) exponent++;
        return value == 0 ? 0 : (15 + exponent) << 10 | ((value << 10 >> exponent) & 0x3ff);
    }

    template <u32 BITS>
    static DEVICE u32 expand(u32 word) {
        if constexpr (BITS == 8) {
            return byte_perm(word, four_times(0x64), 0x4240);
        } else {
            return and_or(word, twice(((1u << BITS) - 1) << (7 - BITS)),
                          twice(integer(8u << BITS)));
        }
    }

    static DEVICE u32 pack(float low, float high) { return pack_f16(low, high); }
    static DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        mma_f16(d, a, b0, b1);
    }
};

// A lane's weights of a chunk as they are packed: LOW lower bits, 16 bytes a lane and half chunk or
// less, then a plane of HIGH more. Fields lie so that a rotation brings a form's to bit PLACE of
// each byte.
template <u32 LOW, u32 HIGH, u32 PLACE>
struct Packed {
    static constexpr u32 CHUNK_BYTES = 128 * (LOW + HIGH);
    u32 low[LOW];
    u32 high[HIGH ? HIGH : 1];

    DEVICE Packed(const u8* chunk, u32 lane) {
        if constexpr (LOW == 2) {
            const u32x2 v = *reinterpret_cast<const u32x2*>(chunk + 8 * lane);
            low[0] = v.x, low[1] = v.y;
        } else {
#pragma unroll
            for (u32 i = 0; i < LOW; i += 4) {
                const u32x4 v = words_at(chunk + 128 * i + 16 * lane);
                low[i] = v.x, low[i + 1] = v.y, low[i + 2] = v.z, low[i + 3] = v.w;
            }
        }
        const u8* plane = chunk + 128 * LOW + 4 * HIGH * lane;
        if constexpr (HIGH == 2) {
            const u32x2 v = *reinterpret_cast<const u32x2*>(plane);
            high[0] = v.x, high[1] = v.y;
        } else if constexpr (HIGH == 1) {
            high[0] = word_at(plane);
        }
    }

    // Form f, its bytes turned so that byte `byte` is the first. Bits outside its fields are
    // anything.
    DEVICE u32 form(u32 f, u32 byte = 0) const {
        const u32 lower =
            rotate_right(low[f * LOW / 8], LOW * (f % (8 / LOW)) + (HIGH ? 0 : 8 * byte));
        if constexpr (HIGH == 0) {
            return lower;
        } else {
            constexpr u32 MASK = four_times(((1u << LOW) - 1) << PLACE);
            const u32 upper = rotate_right(high[f * HIGH / 8], HIGH * (f % (8 / HIGH)));
            return select_bits(MASK, lower, upper) >> (8 * byte);
        }
    }
};

// What a quantized format starts from. weight = scale · (field − ZERO) − minimum, scale and minimum
// for GROUP k. A header has two parts, each an array of the 16 rows'.
template <u32 TILE, u32 GROUP_K, u32 LOW, u32 HIGH, u32 HEADER, u32 MORE_HEADER = 0>
struct Quantized {
    static constexpr bool FLOAT = false;
    static constexpr u32 TILE_K = TILE;
    static constexpr u32 GROUP = GROUP_K;
    static constexpr u32 HEADERS = TILE / 64 * 128 * (LOW + HIGH);
    static constexpr u32 MORE_HEADERS = HEADERS + 16 * HEADER;
    static constexpr u32 TILE_BYTES = MORE_HEADERS + 16 * MORE_HEADER;
    // Tiles side by side that a warp fetches together: 256 k.
    static constexpr u32 STAGE_TILES = 256 / TILE;
    // Pairs of groups of a row.
    static constexpr u32 PAIRS = TILE / GROUP / 2;

    // Significant bits of a form's bytes; 8 stand 128 above a signed integer.
    static constexpr u32 BITS = LOW + HIGH;
    using Chunk = Packed<LOW, HIGH, 7 - BITS + (BITS == 8)>;
    // Forms 2 step and 2 step + 1, then the same with their second byte first.
    static DEVICE void forms(const Chunk& chunk, u32 step, u32 (&form)[4]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) form[i] = chunk.form(2 * step + i % 2, i / 2);
    }
};

// Each format decodes the scales, and the minima, of a row's groups 2 i and 2 i + 1 of a tile.
namespace formats {

// A scale a block of 32.
template <u32 LOW, u32 HIGH>
struct ScaleAlone : Quantized<64, 32, LOW, HIGH, 4> {
    static constexpr bool HAS_MIN = false;
    static DEVICE void pair(const u8* tile, u32 row, u32, float (&scale)[2], float (&)[2]) {
        const u32 both = word_at(tile + ScaleAlone::HEADERS + 4 * row);
        scale[0] = f16_value(u16(both)), scale[1] = f16_value(u16(both >> 16));
    }
};
struct q4_0 : ScaleAlone<4, 0> {
    static constexpr u32 ZERO = 8;
};
struct q5_0 : ScaleAlone<4, 1> {
    static constexpr u32 ZERO = 16;
};
struct q8_0 : ScaleAlone<8, 0> {
    static constexpr u32 ZERO = 128;
};

// A scale and what is added, a block of 32.
template <u32 HIGH>
struct ScaleAndOffset : Quantized<64, 32, 4, HIGH, 8> {
    static constexpr bool HAS_MIN = true;
    static constexpr u32 ZERO = 0;
    static DEVICE void pair(const u8* tile, u32 row, u32, float (&scale)[2], float (&min)[2]) {
        const u32x2 both =
            *reinterpret_cast<const u32x2*>(tile + ScaleAndOffset::HEADERS + 8 * row);
        scale[0] = f16_value(u16(both.x)), scale[1] = f16_value(u16(both.y));
        min[0] = -f16_value(u16(both.x >> 16)), min[1] = -f16_value(u16(both.y >> 16));
    }
};
struct q4_1 : ScaleAndOffset<0> {};
struct q5_1 : ScaleAndOffset<1> {};

// d, dmin; a byte a group, its scale and above it two bits of its minimum; the lower four bits of
// the minima of groups i and 4 + i.
template <u32 HIGH>
struct SixBitScales : Quantized<256, 32, 4, HIGH, 16> {
    static constexpr bool HAS_MIN = true;
    static constexpr u32 ZERO = 0;
    static DEVICE void pair(const u8* tile, u32 row, u32 i, float (&scale)[2], float (&min)[2]) {
        const u8* header = tile + SixBitScales::HEADERS + 16 * row;
        const u32 both = word_at(header), bytes = two_bytes_at(header + 4 + 2 * i);
        const u32 lower = two_bytes_at(header + 12 + 2 * (i % 2)) >> (4 * (i / 2));
        const u32 mins = (lower & four_times(15)) | (bytes >> 2 & four_times(48));
        const float d = f16_value(u16(both)), dmin = f16_value(u16(both >> 16));
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            scale[j] = scaled(d, bytes & four_times(63), j);
            min[j] = scaled(dmin, mins, j);
        }
    }
};
struct q4_k : SixBitScales<0> {};
struct q5_k : SixBitScales<1> {};

// A scale's and a minimum's 4 bits a byte; then d and dmin.
struct q2_k : Quantized<256, 16, 2, 0, 16, 4> {
    static constexpr bool HAS_MIN = true;
    static constexpr u32 ZERO = 0;
    static DEVICE void pair(const u8* tile, u32 row, u32 i, float (&scale)[2], float (&min)[2]) {
        const u32 both = word_at(tile + MORE_HEADERS + 4 * row);
        const u32 bytes = two_bytes_at(tile + HEADERS + 16 * row + 2 * i);
        const float d = f16_value(u16(both)), dmin = f16_value(u16(both >> 16));
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            scale[j] = scaled(d, bytes & four_times(15), j);
            min[j] = scaled(dmin, bytes >> 4 & four_times(15), j);
        }
    }
};

// 12 bytes of 6-bit scales (realm_core::formats::Q3K::unpack_scales); then d.
struct q3_k : Quantized<256, 16, 2, 1, 12, 2> {
    static constexpr bool HAS_MIN = false;
    static constexpr u32 ZERO = 4;
    static DEVICE void pair(const u8* tile, u32 row, u32 i, float (&scale)[2], float (&)[2]) {
        const u8* header = tile + HEADERS + 12 * row;
        const u32 lower = two_bytes_at(header + 2 * (i % 4)) >> (4 * (i / 4)) & four_times(15);
        const u32 upper = two_bytes_at(header + 8 + 2 * (i % 2)) >> (2 * (i / 2)) & four_times(3);
        const float d = half_at(tile + MORE_HEADERS + 2 * row);
#pragma unroll
        for (u32 j = 0; j < 2; j++) scale[j] = scaled(d, lower | upper << 4, j, 32);
    }
};

// 16 signed scales; then d.
struct q6_k : Quantized<256, 16, 4, 2, 16, 2> {
    static constexpr bool HAS_MIN = false;
    static constexpr u32 ZERO = 32;
    static DEVICE void pair(const u8* tile, u32 row, u32 i, float (&scale)[2], float (&)[2]) {
        const u32 bytes = two_bytes_at(tile + HEADERS + 16 * row + 2 * i) ^ four_times(0x80);
        const float d = half_at(tile + MORE_HEADERS + 2 * row);
#pragma unroll
        for (u32 j = 0; j < 2; j++) scale[j] = scaled(d, bytes, j, 128);
    }
};

// One f32 scale a row, told for each chunk.
struct q8_k : Quantized<256, 64, 8, 0, 4> {
    static constexpr bool HAS_MIN = false;
    static constexpr u32 ZERO = 128;
    static DEVICE void pair(const u8* tile, u32 row, u32, float (&scale)[2], float (&)[2]) {
        scale[0] = scale[1] = bits_float(word_at(tile + HEADERS + 4 * row));
    }
};

// 4-bit indices of sixteen levels; a form's bytes are 128 above a level.
template <class Format>
struct FourBitLevels : Format {
    static constexpr u32 ZERO = 128;
    static constexpr u32 BITS = 8;
    // Indices fill their word: nibble 2 b + r is byte b of form r.
    using Chunk = Packed<4, 0, 0>;

    // Bytes of realm_core::formats::IQ4_LEVELS at four indices.
    static DEVICE u32 levels(u32 indices) {
        const u32 negative = byte_perm(0x3f2d1801, 0x766a5d4f, indices & 0x7777);
        const u32 positive = byte_perm(0xa6998d81, 0xf1d9c5b5, indices & 0x7777);
        return byte_perm(negative, positive, (indices >> 1 & 0x4444) | 0x3210);
    }
    static DEVICE void forms(const Chunk& chunk, u32 step, u32 (&form)[4]) {
        // Bytes 0 of both forms, bytes 1; bytes 2, bytes 3.
        const u32 low = levels(chunk.low[step]), high = levels(chunk.low[step] >> 16);
        form[0] = byte_perm(low, high, 0x6420);
        form[1] = byte_perm(low, high, 0x7531);
        form[2] = byte_perm(low, high, 0x0642);
        form[3] = byte_perm(low, high, 0x1753);
    }
};

struct iq4_nl : FourBitLevels<ScaleAlone<4, 0>> {};

// d, the upper two bits of the 6-bit scales, the lower four.
struct SixBitSignedScales : Quantized<256, 32, 4, 0, 8> {
    static constexpr bool HAS_MIN = false;
    static DEVICE void pair(const u8* tile, u32 row, u32 i, float (&scale)[2], float (&)[2]) {
        const u8* header = tile + HEADERS + 8 * row;
        const u32 first = word_at(header), lower = header[4 + i], upper = first >> (16 + 4 * i);
        const float d = f16_value(u16(first));
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            scale[j] = scaled(d, (lower >> (4 * j) & 15) | (upper >> (2 * j) & 3) << 4, 0, 32);
        }
    }
};
struct iq4_xs : FourBitLevels<SixBitSignedScales> {};

// Weights that are numbers already: fragments as they stand, a step's 16 x 16 weights after
// another.
template <u32 SIZE>
struct Floats {
    static constexpr bool FLOAT = true;
    static constexpr bool HAS_MIN = false;
    static constexpr u32 TILE_K = 64;
    static constexpr u32 TILE_BYTES = 1024 * SIZE;
    static constexpr u32 STAGE_TILES = 1;
    struct Chunk {
        const u8* chunk;
        u32 lane;
        DEVICE Chunk(const u8* at, u32 l) : chunk(at), lane(l) {}
        static constexpr u32 CHUNK_BYTES = TILE_BYTES;
    };
};

struct f16 : Floats<2> {
    // A step's fragment: value 2 i + j is half j of register i.
    static DEVICE void values(const Chunk& from, u32 step, float (&value)[8]) {
        const u32x4 v = words_at(from.chunk + 512 * step + 16 * from.lane);
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            value[2 * i] = f16_value(u16(words[i]));
            value[2 * i + 1] = f16_value(u16(words[i] >> 16));
        }
    }
};

struct bf16 : Floats<2> {
    static DEVICE void values(const Chunk& from, u32 step, float (&value)[8]) {
        const u32x4 v = words_at(from.chunk + 512 * step + 16 * from.lane);
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            value[2 * i] = bf16_value(u16(words[i]));
            value[2 * i + 1] = bits_float(words[i] & 0xffff0000u);
        }
    }
};

struct f32 : Floats<4> {
    static DEVICE void values(const Chunk& from, u32 step, float (&value)[8]) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32x4 v = words_at(from.chunk + 1024 * step + 512 * half + 16 * from.lane);
            value[4 * half] = bits_float(v.x), value[4 * half + 1] = bits_float(v.y);
            value[4 * half + 2] = bits_float(v.z), value[4 * half + 3] = bits_float(v.w);
        }
    }
};

}  // namespace formats

template <class A, class B>
constexpr bool SAME = false;
template <class A>
constexpr bool SAME<A, A> = true;

// The fragment of a step.
template <class F, class In>
DEVICE void fragment(const typename F::Chunk& chunk, u32 step, u32 (&a)[4]) {
    if constexpr (!F::FLOAT) {
        u32 form[4];
        F::forms(chunk, step, form);
#pragma unroll
        for (u32 i = 0; i < 4; i++) a[i] = In::template expand<F::BITS>(form[i]);
    } else if constexpr ((SAME<F, formats::f16> && SAME<In, InF16>) ||
                         (SAME<F, formats::bf16> && SAME<In, InBf16>)) {
        const u32x4 v = words_at(chunk.chunk + 512 * step + 16 * chunk.lane);
        a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
    } else {
        float value[8];
        F::values(chunk, step, value);
#pragma unroll
        for (u32 i = 0; i < 4; i++) a[i] = In::pack(value[2 * i], value[2 * i + 1]);
    }
}
