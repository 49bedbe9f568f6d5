// Gradients of the kernels of depthwise convolutions with wide kernels.

#pragma once

#include <memory>

#include "convolution.h"

namespace cnnjax {

// Null where oneDNN is as fast or the problem is another.
std::unique_ptr<Convolution> depthwise_gradient(const Problem& problem);

}  // namespace cnnjax
