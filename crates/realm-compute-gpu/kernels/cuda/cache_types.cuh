// What attention needs to know of each type of cache. SCALED types hold integers that a scale multiplies,
// one for KV_SCALE_SPAN elements.
#pragma once
#include "kv.cuh"

struct CacheF32 {
    static constexpr u32 KIND = KV_KIND_F32, BYTES = 4;
    static constexpr bool SCALED = false;
};

struct CacheF16 {
    static constexpr u32 KIND = KV_KIND_F16, BYTES = 2;
    static constexpr bool SCALED = false;
};

struct CacheBf16 {
    static constexpr u32 KIND = KV_KIND_BF16, BYTES = 2;
    static constexpr bool SCALED = false;
};

struct CacheQ8_0 {
    static constexpr u32 KIND = KV_KIND_Q8_0, BYTES = 1;
    static constexpr bool SCALED = true;
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
