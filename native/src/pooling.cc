#include "pooling.h"

#include <algorithm>
#include <vector>

#include "clones.h"

namespace cnnjax {
namespace {

struct Range {
  int64_t first, last;  // of the taps inside the image
};

Range taps(int64_t start, int64_t window, int64_t size) {
  return {std::max<int64_t>(0, -start), std::min(window, size - start)};
}

// Where not already larger, or NaN: takes x. The first of equals stays.
CNNJAX_CLONES void larger(const float* __restrict x, int64_t channels, float* __restrict best) {
  for (int64_t i = 0; i < channels; ++i)
    best[i] = (best[i] >= x[i]) | (best[i] != best[i]) ? best[i] : x[i];
}

CNNJAX_CLONES void larger_at(const float* __restrict x, int32_t tap, int64_t channels,
                             float* __restrict best, int32_t* __restrict where) {
  for (int64_t i = 0; i < channels; ++i) {
    bool keep = (best[i] >= x[i]) | (best[i] != best[i]);
    best[i] = keep ? best[i] : x[i];
    where[i] = keep ? where[i] : tap;
  }
}

CNNJAX_CLONES void add_where(const float* __restrict dy, const int32_t* __restrict where,
                             int32_t tap, int64_t channels, float* __restrict dx) {
  for (int64_t i = 0; i < channels; ++i) dx[i] += where[i] == tap ? dy[i] : 0.0f;
}

}  // namespace

void max_pool(const Pool& p, const float* x, const Team& team, float* y) {
  auto one = [&](int64_t row) {
    int64_t image = row / p.out_h, top = row % p.out_h * p.stride_h - p.top;
    Range rows = taps(top, p.window_h, p.h);
    for (int64_t column = 0; column < p.out_w; ++column) {
      int64_t left = column * p.stride_w - p.left;
      Range columns = taps(left, p.window_w, p.w);
      float* best = y + (row * p.out_w + column) * p.c;
      for (int64_t i = rows.first; i < rows.last; ++i)
        for (int64_t j = columns.first; j < columns.last; ++j) {
          const float* pixel = x + ((image * p.h + top + i) * p.w + left + j) * p.c;
          if (i == rows.first && j == columns.first)
            std::copy_n(pixel, p.c, best);
          else
            larger(pixel, p.c, best);
        }
    }
  };
  team.share(p.n * p.out_h, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) one(row);
  });
}

void max_pool_gradient(const Pool& p, const float* x, const float* dy, const Team& team, float* dx) {
  // Windows overlap, so a task is a whole image, or where there are few, some of its channels.
  int64_t parts = p.n >= team.threads() ? 1 : std::clamp<int64_t>(p.c / 16, 1, team.threads());
  team.run(p.n * parts, [&](int64_t task, int64_t) {
    int64_t image = task / parts, part = task % parts;
    int64_t first = p.c * part / parts, channels = p.c * (part + 1) / parts - first;
    std::vector<float> best(static_cast<size_t>(channels));
    std::vector<int32_t> where(static_cast<size_t>(channels));
    auto pixel = [&](int64_t i, int64_t j) { return ((image * p.h + i) * p.w + j) * p.c + first; };
    int64_t cleared = 0;  // rows; each just before it is first added to, while it is in the cache
    auto clear = [&](int64_t last) {
      for (; cleared < last; ++cleared)
        for (int64_t j = 0; j < p.w; ++j) std::fill_n(dx + pixel(cleared, j), channels, 0.0f);
    };
    for (int64_t row = 0; row < p.out_h; ++row) {
      int64_t top = row * p.stride_h - p.top;
      Range rows = taps(top, p.window_h, p.h);
      clear(top + rows.last);
      for (int64_t column = 0; column < p.out_w; ++column) {
        int64_t left = column * p.stride_w - p.left;
        Range columns = taps(left, p.window_w, p.w);
        auto each = [&](auto visit) {
          for (int64_t i = rows.first; i < rows.last; ++i)
            for (int64_t j = columns.first; j < columns.last; ++j)
              visit(static_cast<int32_t>(i * p.window_w + j), pixel(top + i, left + j));
        };
        auto start = static_cast<int32_t>(rows.first * p.window_w + columns.first);
        each([&](int32_t tap, int64_t at) {
          if (tap == start) {
            std::copy_n(x + at, channels, best.begin());
            std::fill(where.begin(), where.end(), tap);
          } else {
            larger_at(x + at, tap, channels, best.data(), where.data());
          }
        });
        const float* gradient =
            dy + ((image * p.out_h + row) * p.out_w + column) * p.c + first;
        each([&](int32_t tap, int64_t at) {
          add_where(gradient, where.data(), tap, channels, dx + at);
        });
      }
    }
    clear(p.h);
  });
}

}  // namespace cnnjax
