// How attention reads each type of cache. A lane holds its share of a row in *units*: what it copies and
// loads at once. Each type says how many elements a unit has where a lane holds `size` of them, and how a
// unit in shared memory becomes f32. SCALED types hold integers that a scale multiplies, one for
// KV_SCALE_SPAN elements; a unit never crosses that border.
#pragma once
#include "kv.cuh"

struct CacheF32 {
    static constexpr u32 KIND = KV_KIND_F32, BYTES = 4;
    static constexpr bool SCALED = false;
    static constexpr u32 unit(u32) { return 4; }

    static DEVICE void load(float (&x)[4], const u8* at) {
        const f32x4 v = *reinterpret_cast<const f32x4*>(at);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    }
};

struct CacheF16 {
    static constexpr u32 KIND = KV_KIND_F16, BYTES = 2;
    static constexpr bool SCALED = false;
    static constexpr u32 unit(u32) { return 8; }

    static DEVICE void load(float (&x)[8], const u8* at) {
        const u32x4 v = *reinterpret_cast<const u32x4*>(at);
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = f16_value(u16(words[i]));
            x[2 * i + 1] = f16_value(u16(words[i] >> 16));
        }
    }
};

struct CacheBf16 {
    static constexpr u32 KIND = KV_KIND_BF16, BYTES = 2;
    static constexpr bool SCALED = false;
    static constexpr u32 unit(u32) { return 8; }

    static DEVICE void load(float (&x)[8], const u8* at) {
        const u32x4 v = *reinterpret_cast<const u32x4*>(at);
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = bits_float(words[i] << 16);
            x[2 * i + 1] = bits_float(words[i] & 0xffff0000u);
        }
    }
};

struct CacheQ8_0 {
    static constexpr u32 KIND = KV_KIND_Q8_0, BYTES = 1;
    static constexpr bool SCALED = true;
    static constexpr u32 unit(u32 size) { return size; }

    // The integers. With the sign bit flipped a byte is q + 128; as the low byte of 2^23 it needs no
    // conversion, one exact subtraction instead.
    static DEVICE void spread(float* x, u32 word) {
        word ^= 0x80808080u;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[i] = bits_float(byte_perm(word, 0x4b000000u, 0x7440u | i)) - 8388736.0f;
        }
    }

    static DEVICE void load(float (&x)[8], const u8* at) {
        const u32x2 v = *reinterpret_cast<const u32x2*>(at);
        spread(x, v.x);
        spread(x + 4, v.y);
    }

    static DEVICE void load(float (&x)[16], const u8* at) {
        const u32x4 v = *reinterpret_cast<const u32x4*>(at);
        spread(x, v.x);
        spread(x + 4, v.y);
        spread(x + 8, v.z);
        spread(x + 12, v.w);
    }
};

#if defined(KV_F32)
using Cache = CacheF32;
#elif defined(KV_F16)
using Cache = CacheF16;
#elif defined(KV_BF16)
using Cache = CacheBf16;
#elif defined(KV_Q8_0)
using Cache = CacheQ8_0;
#endif
