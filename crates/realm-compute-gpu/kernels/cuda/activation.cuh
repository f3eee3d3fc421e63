// The non-linearities of gated units.
#pragma once
#include "intrinsics.cuh"

// realm_core::graph::ops::Activation. 0 is left to those who have none.
enum Activation : u32 { SILU = 1, GELU_TANH = 2, GELU = 3 };

// Written so that nothing cancels where x is far below zero.
DEVICE float activate(u32 activation, float x) {
    switch (activation) {
    case SILU:
        return x / (1.0f + expf(-x));
    case GELU_TANH: {
        // (1 + tanh(y)) / 2 = 1 / (1 + exp(-2y)), here with 2y, y = sqrt(2/pi) (x + 0.044715 x^3).
        const float twice = 1.5957691f * fmaf(0.044715f * x * x, x, x);
        return x / (1.0f + expf(-twice));
    }
    default:
        return 0.5f * x * erfcf(x * -0.70710678f);
    }
}
