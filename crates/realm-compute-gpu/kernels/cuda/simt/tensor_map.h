// What `Gpu::tensor_map` of the emulated device makes: see src/cuda/emulated.rs.
#pragma once
#include <cstdint>

namespace simt {

constexpr uint64_t TENSOR_MAP = 0x70616d2d6d6c6572;  // "relm-map"

struct alignas(64) TensorMap {
    uint64_t magic;
    // Of 16-bit elements, rows row_bytes apart.
    uint64_t address, cols, rows, row_bytes;
    uint32_t box_cols, box_rows;
    uint64_t rest[10];
};
static_assert(sizeof(TensorMap) == 128, "as long as CUDA's");

}  // namespace simt
