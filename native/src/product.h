// 1 x 1 convolutions with large kernels as plain matrix products.

#pragma once

#include <memory>

#include "convolution.h"

namespace cnnjax {

// Null where oneDNN's convolution is as fast or the problem is another.
std::unique_ptr<Convolution> product(const Problem& problem);

}  // namespace cnnjax
