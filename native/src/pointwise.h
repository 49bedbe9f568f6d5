// The gradient of 1 x 1 kernels, dw = x' dy, where many pixels make a small matrix.

#pragma once

#include <memory>

#include "convolution.h"

namespace cnnjax {

// Null where oneDNN is as fast or the problem is another.
std::unique_ptr<Convolution> pointwise_gradient(const Problem& problem);

}  // namespace cnnjax
