// Sums over all axes but the last, in one pass over memory, for batch normalisation.

#pragma once

#include <cstdint>

namespace cnnjax {

// Mean and biased variance of each channel of x [rows, channels], to [2, channels]. The variance is
// taken from centred values: block by block, while a block is in the cache.
void moments(const float* x, int64_t rows, int64_t channels, int threads, float* result);

// Sums over rows of v and of v * (x - mean), to [2, channels].
void sums(const float* v, const float* x, const float* mean, int64_t rows, int64_t channels,
          int threads, float* result);

}  // namespace cnnjax
