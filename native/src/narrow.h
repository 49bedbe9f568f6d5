// Gradients of images of few channels, which fill a fraction of oneDNN's vectors.

#pragma once

#include <memory>

#include "convolution.h"

namespace cnnjax {

// Null where oneDNN is as fast or the problem is another.
std::unique_ptr<Convolution> narrow_gradient(const Problem& problem);

}  // namespace cnnjax
