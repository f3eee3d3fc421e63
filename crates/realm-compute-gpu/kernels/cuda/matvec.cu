// Products of a weight with a few rows of activations: a unit for each format.
#include "matvec_one.cuh"
#include "matvec_plain.cuh"
#include "matvec_tensor.cuh"

#define MATVEC_JOIN(format, variant) matvec_##format##_##variant
#define MATVEC_NAME(format, variant) MATVEC_JOIN(format, variant)
#define MATVEC(variant, threads, ...) \
    KERNEL(MATVEC_NAME(FORMAT, variant), MatvecParams, threads) { matvec<__VA_ARGS__>(p); }
// One slot of a mixture of experts.
#define MIXTURE(variant, threads, Run, ...)                                  \
    KERNEL(MATVEC_NAME(FORMAT, variant##_mixture), MixtureParams, threads) { \
        matvec<Run<__VA_ARGS__, MixtureParams>>(p);                          \
    }
using Format = formats::FORMAT;

// Bounds with which ptxas, which aims at the register counts that let one block more run at once,
// spills none, and for one row takes about 48: blocks have no more warps (most_warps in
// src/cuda/kernels/matvec.rs).
#if FORMAT_F32 || FORMAT_F16 || FORMAT_BF16
MATVEC(bf16_n1, 512, TensorRun<Format, InBf16, 1, false>)
MATVEC(f16_n1, 512, TensorRun<Format, InF16, 1, false>)
MATVEC(f32, 640, PlainRun<Format>)
MIXTURE(bf16_n1, 512, TensorRun, Format, InBf16, 1, false)
MIXTURE(f16_n1, 512, TensorRun, Format, InF16, 1, false)
MIXTURE(f32, 640, PlainRun, Format)
#else
#if FORMAT_Q8_K
// Which also serve one row.
constexpr u32 THREADS = 512;
MIXTURE(f16_n1, THREADS, TensorRun, Format, InF16, 1, false)
MIXTURE(int8_n1, 576, TensorRun, Format, InBf16, 1, true)
#else
#if FORMAT_Q6_K
constexpr u32 THREADS = 384;
constexpr u32 MIXTURE_THREADS = 576;
#else
constexpr u32 THREADS = 320;
constexpr u32 MIXTURE_THREADS = 640;
#endif
constexpr u32 ONE_ROW_THREADS = 640;
// One row that is one column.
MATVEC(bf16_one, ONE_ROW_THREADS, OneRowRun<Format, InBf16, false>)
MATVEC(f16_one, ONE_ROW_THREADS, OneRowRun<Format, InF16, false>)
MATVEC(int8_one, ONE_ROW_THREADS, OneRowRun<Format, InBf16, true>)
MIXTURE(bf16_one, MIXTURE_THREADS, OneRowRun, Format, InBf16, false)
MIXTURE(f16_one, MIXTURE_THREADS, OneRowRun, Format, InF16, false)
MIXTURE(int8_one, MIXTURE_THREADS, OneRowRun, Format, InBf16, true)
#endif
// Up to 8 columns.
MATVEC(bf16_n1, THREADS, TensorRun<Format, InBf16, 1, false>)
MIXTURE(bf16_n1, THREADS, TensorRun, Format, InBf16, 1, false)
MATVEC(f16_n1, THREADS, TensorRun<Format, InF16, 1, false>)
MATVEC(int8_n1, THREADS, TensorRun<Format, InBf16, 1, true>)
// Up to 24 columns: eight rows of three.
MATVEC(bf16_n3, 192, TensorRun<Format, InBf16, 3, false>)
#endif
