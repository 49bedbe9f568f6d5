// Maximum pooling over the two spatial axes of [n, h, w, c], and its gradient.

#pragma once

#include <cstdint>

#include "team.h"

namespace cnnjax {

// Padding never wins; it may not be a whole window.
struct Pool {
  int64_t n, h, w, c, out_h, out_w, window_h, window_w, stride_h, stride_w, top, left;
};

// y [n, out_h, out_w, c]; NaN wins over everything.
void max_pool(const Pool& pool, const float* x, const Team& team, float* y);

// dx, as x: of each window, the first maximum in row-major order takes the gradient dy.
void max_pool_gradient(const Pool& pool, const float* x, const float* dy, const Team& team, float* dx);

}  // namespace cnnjax
