#include "channels.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "clones.h"

namespace cnnjax {
namespace {

// Rows of a block: it stays in the second-level cache, and float32 sums over it stay exact to a
// few units in the last place; blocks are added in float64.
int64_t block_rows(int64_t channels) { return std::clamp<int64_t>(32768 / channels, 16, 256); }

CNNJAX_CLONES void add_rows(const float* __restrict x, int64_t rows, int64_t width,
                            float* __restrict total) {
  for (int64_t row = 0; row < rows; ++row, x += width)
    for (int64_t i = 0; i < width; ++i) total[i] += x[i];
}

CNNJAX_CLONES void add_squares(const float* __restrict x, const float* __restrict mean,
                               int64_t rows, int64_t width,
                               float* __restrict total) {
  for (int64_t row = 0; row < rows; ++row, x += width)
    for (int64_t i = 0; i < width; ++i) {
      float centred = x[i] - mean[i];
      total[i] += centred * centred;
    }
}

CNNJAX_CLONES void add_products(const float* __restrict v, const float* __restrict x,
                                const float* __restrict mean, int64_t rows,
                                int64_t width, float* __restrict first, float* __restrict second) {
  for (int64_t row = 0; row < rows; ++row, v += width, x += width)
    for (int64_t i = 0; i < width; ++i) {
      first[i] += v[i];
      second[i] += v[i] * (x[i] - mean[i]);
    }
}

// Runs `block(first row, rows, part's sums)` over all blocks and `merge(sums, sums)` over the parts,
// as many as threads, in their order, so that a result depends on that number alone.
template <typename Sums, typename Block, typename Merge>
Sums reduce(int64_t rows, int64_t step, const Team& team, const Sums& zero, Block block, Merge merge) {
  int64_t blocks = (rows + step - 1) / step, parts = std::min(team.threads(), blocks);
  std::vector<Sums> partial(static_cast<size_t>(parts), zero);
  team.run(parts, [&](int64_t part, int64_t) {
    Sums& mine = partial[static_cast<size_t>(part)];
    for (int64_t i = blocks * part / parts; i < blocks * (part + 1) / parts; ++i)
      block(i * step, std::min(step, rows - i * step), mine);
  });
  for (size_t i = 1; i < partial.size(); ++i) merge(partial[0], partial[i]);
  return std::move(partial[0]);
}

// Mean and sum of squared deviations of `count` values of each channel.
struct Moments {
  double count = 0;
  std::vector<double> mean, squares;
  std::vector<float> total, centre;  // of the block at hand
};

// Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
// variances", equation 2.1.
template <typename Value>
void add(Moments& sums, double count, const Value* mean, const Value* squares) {
  double all = sums.count + count, weight = count / all, between = sums.count * weight;
  for (size_t i = 0; i < sums.mean.size(); ++i) {
    double difference = mean[i] - sums.mean[i];
    sums.mean[i] += difference * weight;
    sums.squares[i] += squares[i] + difference * difference * between;
  }
  sums.count = all;
}

}  // namespace

void moments(const float* x, int64_t rows, int64_t channels, const Team& team, float* mean,
             float* variance) {
  auto width = static_cast<size_t>(channels);
  Moments zero;
  zero.mean.assign(width, 0.0);
  zero.squares.assign(width, 0.0);
  zero.total.assign(width, 0.0f);
  zero.centre.assign(width, 0.0f);
  auto block = [&](int64_t first, int64_t count, Moments& sums) {
    const float* start = x + first * channels;
    std::fill(sums.centre.begin(), sums.centre.end(), 0.0f);
    add_rows(start, count, channels, sums.centre.data());
    for (float& value : sums.centre) value /= static_cast<float>(count);
    std::fill(sums.total.begin(), sums.total.end(), 0.0f);
    add_squares(start, sums.centre.data(), count, channels, sums.total.data());
    add(sums, static_cast<double>(count), sums.centre.data(), sums.total.data());
  };
  auto merge = [](Moments& sums, const Moments& other) {
    add(sums, other.count, other.mean.data(), other.squares.data());
  };
  Moments all = reduce(rows, block_rows(channels), team, zero, block, merge);
  for (size_t i = 0; i < width; ++i) {
    mean[i] = static_cast<float>(all.mean[i]);
    variance[i] = static_cast<float>(all.squares[i] / all.count);
  }
}

void sums(const float* v, const float* x, const float* mean, int64_t rows, int64_t channels,
          const Team& team, float* values, float* products) {
  struct Sums {
    std::vector<double> all;    // both sums
    std::vector<float> block;
  };
  auto width = static_cast<size_t>(channels);
  Sums zero{std::vector<double>(2 * width, 0.0), std::vector<float>(2 * width, 0.0f)};
  auto block = [&](int64_t first, int64_t count, Sums& sums) {
    std::fill(sums.block.begin(), sums.block.end(), 0.0f);
    add_products(v + first * channels, x + first * channels, mean, count, channels,
                 sums.block.data(), sums.block.data() + width);
    for (size_t i = 0; i < 2 * width; ++i) sums.all[i] += sums.block[i];
  };
  auto merge = [](Sums& sums, const Sums& other) {
    for (size_t i = 0; i < sums.all.size(); ++i) sums.all[i] += other.all[i];
  };
  Sums total = reduce(rows, block_rows(channels), team, zero, block, merge);
  for (size_t i = 0; i < width; ++i) {
    values[i] = static_cast<float>(total.all[i]);
    products[i] = static_cast<float>(total.all[width + i]);
  }
}

}  // namespace cnnjax
