#include "tiles.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

namespace {
constexpr int kLanes = 16, kRows = 14, kOuterRows = 8;  // 28 and 16 sums in 32 registers
}

#include "tiles_vector.h"

namespace cnnjax {

extern const Tiles kTilesAvx512;
const Tiles kTilesAvx512 = {kLanes, kRows, kOuterRows, multiply, accumulate, transpose,
                            correlate, depthwise, images, gradients, kernel, kernel_gradient,
                            transposed_kernel, outputs};

}  // namespace cnnjax
