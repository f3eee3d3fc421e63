// Products of a weight with many rows of activations: a unit for each format. src/cuda/kernels/matmul.rs
// chooses the variant.
#include "matmul_mma.cuh"
#include "matmul_wgmma.cuh"

#define MATMUL_JOIN(format, variant) matmul_##format##_##variant
#define MATMUL_NAME(format, variant) MATMUL_JOIN(format, variant)
using Format = formats::FORMAT;

// Machine code for compute capability 9.0 has the variants with wgmma, any other the ones without.
#ifndef __CUDA_ARCH_FEAT_SM90_ALL
#define MATMUL_MMA(variant, In, N, blocks)                                           \
    KERNEL_BLOCKS(MATMUL_NAME(FORMAT, variant), MatmulParams, MMA_THREADS, blocks) { \
        matmul_mma<Format, In, N>(p);                                                \
    }
// Registers for as many blocks as shared memory has room for: no more than 255, 128.
MATMUL_MMA(bf16_mma_n32, InBf16, 32, 4)
MATMUL_MMA(bf16_mma_n128, InBf16, 128, 2)
MATMUL_MMA(f16_mma_n32, InF16, 32, 4)
MATMUL_MMA(f16_mma_n128, InF16, 128, 2)
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(REALM_EMULATED)
#define MATMUL_WGMMA(variant, In, N)                                                              \
    KERNEL_BLOCKS(MATMUL_NAME(FORMAT, variant), MatmulParams, (WgmmaPlan<Format, N>::THREADS),    \
                  (WgmmaPlan<Format, N>::BLOCKS)) {                                               \
        matmul_wgmma<Format, In, N>(p);                                                           \
    }
MATMUL_WGMMA(bf16_wgmma_n32, InBf16, 32)
MATMUL_WGMMA(bf16_wgmma_n64, InBf16, 64)
MATMUL_WGMMA(bf16_wgmma_n128, InBf16, 128)
MATMUL_WGMMA(bf16_wgmma_n256, InBf16, 256)
MATMUL_WGMMA(f16_wgmma_n32, InF16, 32)
MATMUL_WGMMA(f16_wgmma_n64, InF16, 64)
MATMUL_WGMMA(f16_wgmma_n128, InF16, 128)
MATMUL_WGMMA(f16_wgmma_n256, InF16, 256)
#endif
