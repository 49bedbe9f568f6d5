#include "tiles.h"

#pragma GCC target("avx2,fma")

namespace {
constexpr int kLanes = 8, kRows = 6, kOuterRows = 4;  // 12 and 8 sums in 16 registers
}

#include "tiles_vector.h"

namespace cnnjax {

extern const Tiles kTilesAvx2;
const Tiles kTilesAvx2 = {kLanes, kRows, kOuterRows, multiply, accumulate, transpose, correlate,
                          depthwise, images, gradients, kernel, kernel_gradient, transposed_kernel,
                          outputs};

}  // namespace cnnjax
