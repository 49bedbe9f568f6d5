// Sums over all axes but the last, in one pass over memory, for batch normalisation.

#pragma once

#include <cstdint>

#include "team.h"

namespace cnnjax {

// Mean and biased variance of each channel of x [rows, channels]. The variance is taken from centred
// values: block by block, while a block is in the cache.
void moments(const float* x, int64_t rows, int64_t channels, const Team& team, float* mean,
             float* variance);

// Sums over rows of v and of v * (x - mean), of each channel.
void sums(const float* v, const float* x, const float* mean, int64_t rows, int64_t channels,
          const Team& team, float* values, float* products);

}  // namespace cnnjax
