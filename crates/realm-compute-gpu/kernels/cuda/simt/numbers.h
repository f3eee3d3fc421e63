// f16 and bf16 for the emulation.
#pragma once
#include <cstring>

namespace simt {

inline unsigned float_bits(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float bits_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline unsigned short bf16_bits(float value) {
    const unsigned bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline unsigned short f16_bits(float value) {
    const unsigned bits = float_bits(value), sign = bits >> 16 & 0x8000;
    unsigned size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x477ff000u) {
        // 65520 and more round to infinity.
        size = 0x7c00;
    } else if (size < 0x38800000u) {
        // Subnormal: 0.5's last bit is f16's smallest number, so that the addition rounds.
        size = float_bits(bits_float(size) + 0.5f) - 0x3f000000u;
    } else {
        size = (size - 0x38000000u + 0xfff + (size >> 13 & 1)) >> 13;
    }
    return static_cast<unsigned short>(sign | size);
}

inline float f16_value(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, size = (bits & 0x7fffu) << 13;
    // The exponent's bias is 112 more in f32; the product is right for subnormals, too.
    unsigned value = float_bits(bits_float(size) * 0x1p112f);
    if (size >= 0x0f800000u) value = size | 0x7f800000u;
    return bits_float(value | sign);
}

}  // namespace simt
