// Convolutions with 3 x 3 kernels and stride 1, and their gradients, by F(2 x 2, 3 x 3) of Lavin and
// Gray 2016, https://arxiv.org/abs/1509.09308: 16 products for every four outputs instead of 36.

#pragma once

#include <memory>

#include "convolution.h"

namespace cnnjax {

// Null where the method doesn't fit the problem, or the processor.
std::unique_ptr<Convolution> winograd(const Problem& problem);

}  // namespace cnnjax
