// Attention of the rows of prompts over the paged cache: the variants for a type of cache. Those of wgmma
// are for sm_90 alone.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(REALM_EMULATED)
#define FLASH_WGMMA 1
#endif
#include "flash_mma.cuh"
#ifdef FLASH_WGMMA
#include "flash_wgmma.cuh"
#endif

#define NAME_OF(kv, in, dim) flash_##kv##_##in##_mma_d##dim
#define NAME(kv, in, dim) NAME_OF(kv, in, dim)
// Heads of up to `dim` elements; `blocks` is how many blocks registers shall suffice for on a multiprocessor.
#define FLASH_MMA(In, in, dim, blocks, ...)                                     \
    using Mma_##in##_##dim = MmaShape<dim, __VA_ARGS__>;                        \
    KERNEL_BLOCKS(NAME(KV, in, dim), FlashParams, Mma_##in##_##dim::THREADS, blocks) { \
        attend_mma<In, Mma_##in##_##dim>(p);                                    \
    }

#ifndef __CUDA_ARCH_FEAT_SM90_ALL
#define FLASH(In, in)                           \
    FLASH_MMA(In, in, 64, 2, 4, 2, 64, 3, true)  \
    FLASH_MMA(In, in, 96, 2, 4, 2, 64, 3, false)  \
    FLASH_MMA(In, in, 128, 2, 4, 2, 32, 4, false) \
    FLASH_MMA(In, in, 256, 2, 4, 1, 32, 3, false)

#ifndef KV_BF16
FLASH(FlashF16, f16)
#endif
#if defined(KV_BF16) || defined(KV_F32)
FLASH(FlashBf16, bf16)
#endif
#endif

#ifdef FLASH_WGMMA
#define WIDE_NAME_OF(kv, in, dim) flash_##kv##_##in##_wgmma_d##dim
#define WIDE_NAME(kv, in, dim) WIDE_NAME_OF(kv, in, dim)
// One block on a multiprocessor.
#define FLASH_WIDE_OF(In, in, dim)                                                                  \
    KERNEL_BLOCKS(WIDE_NAME(KV, in, dim), FlashParams, (WgmmaShape<In, dim>::THREADS), 1) {         \
        attend_wgmma<In, dim>(p);                                                                   \
    }
// Transposed operands come in whole panels of 64: heads of 96 are padded.
#define FLASH_WIDE(In, in)        \
    FLASH_WIDE_OF(In, in, 64)     \
    FLASH_WIDE_OF(In, in, 128)    \
    FLASH_WIDE_OF(In, in, 256)

#ifndef KV_BF16
FLASH_WIDE(FlashF16, f16)
#endif
#if defined(KV_BF16) || defined(KV_F32)
FLASH_WIDE(FlashBf16, bf16)
#endif
#endif
