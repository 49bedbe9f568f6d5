#include "pointwise.h"

#include <algorithm>
#include <cstring>

#include "tiles.h"

namespace cnnjax {
namespace {

constexpr int64_t kBlock = 128;  // pixels
constexpr int64_t kPad = 16;     // floats after each row, lest rows share the cache's sets
// The matrix stays in the second-level cache, and is small beside the images.
constexpr int64_t kMostElements = 192 << 10, kFewestPixels = 4096;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Parts of the pixels, as many as threads, have a matrix each; these are added in their order.
class PointwiseGradient : public Convolution {
 public:
  PointwiseGradient(const Problem& p, const Tiles& tiles)
      : p_(p),
        tiles_(tiles),
        pixels_(p.n * p.h * p.w),
        row_(stride(p.c)),
        column_(stride(p.out_c)),
        thread_floats_(p.c * p.out_c + kBlock * (row_ + column_)) {}

  void operator()(const Arrays& arrays, std::byte* scratch, const Team& team) override {
    auto* memory = reinterpret_cast<float*>(scratch);
    auto *x = static_cast<const float*>(arrays.images),
         *dy = static_cast<const float*>(arrays.outputs);
    auto* dw = static_cast<float*>(arrays.kernel);
    // Whole blocks for each thread, so that one thread's last block alone is short.
    int64_t blocks = (pixels_ + kBlock - 1) / kBlock;
    int64_t parts = p_.threads, elements = p_.c * p_.out_c;
    team.run(parts, [&](int64_t part, int64_t) {
      add(x, dy, blocks * part / parts * kBlock,
          std::min(pixels_, blocks * (part + 1) / parts * kBlock), memory + part * thread_floats_);
    });
    team.share(elements, [&](int64_t first, int64_t last, int64_t) {
      std::copy(memory + first, memory + last, dw + first);
      for (int64_t other = 1; other < parts; ++other) {
        const float* from = memory + other * thread_floats_;
        for (int64_t i = first; i < last; ++i) dw[i] += from[i];
      }
    });
  }

  void pack(const void*, void*, const Team&) override {}
  size_t scratch_bytes() const override {
    return 4 * static_cast<size_t>(p_.threads * thread_floats_);
  }
  size_t packed_bytes() const override { return 0; }
  std::string implementation() const override { return "pointwise"; }

 private:
  // Rows of these many channels would share few of the first-level cache's sets.
  static bool collides(int64_t channels) { return channels % 64 == 0; }
  static int64_t stride(int64_t channels) { return channels + (collides(channels) ? kPad : 0); }

  // The pixels [first, last), into memory's first part, [c, out_c].
  void add(const float* x, const float* dy, int64_t first, int64_t last, float* memory) const {
    float* copies = memory + p_.c * p_.out_c;
    std::fill_n(memory, p_.c * p_.out_c, 0.0f);
    int64_t panel = 2 * tiles_.lanes;
    int64_t products = p_.c / tiles_.outer_rows * ((p_.out_c + panel - 1) / panel);
    for (int64_t start = first; start < last; start += kBlock) {
      int64_t count = std::min(kBlock, last - start), next = std::min(kBlock, last - start - count);
      const float* left = block(x + start * p_.c, p_.c, count, copies);
      const float* right = block(dy + start * p_.out_c, p_.out_c, count, copies + kBlock * row_);
      // The next block comes from memory while this one is multiplied.
      Ahead ahead_x{x + (start + count) * p_.c, next * p_.c, products};
      Ahead ahead_dy{dy + (start + count) * p_.out_c, next * p_.out_c, products};
      for (int64_t column = 0; column < p_.out_c; column += panel)
        for (int64_t row = 0; row < p_.c; row += tiles_.outer_rows) {
          ahead_x.fetch();
          ahead_dy.fetch();
          tiles_.accumulate(left + row, row_, right + column, column_, count,
                            std::min(panel, p_.out_c - column), true,
                            memory + row * p_.out_c + column, p_.out_c);
        }
    }
  }

  // An array that is fetched into the cache in so many steps.
  struct Ahead {
    Ahead(const float* from, int64_t length, int64_t steps)
        : next(from), end(from + length), step(round_up((length + steps - 1) / steps, 16)) {}

    void fetch() {
      for (const float* to = std::min(next + step, end); next < to; next += 16)
        __builtin_prefetch(next, 0, 2);
    }

    const float *next, *end;
    int64_t step;
  };

  // A block's rows, `stride` apart.
  static const float* block(const float* from, int64_t channels, int64_t count, float* copy) {
    if (!collides(channels)) return from;
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(copy + i * stride(channels), from + i * channels,
                  static_cast<size_t>(channels) * 4);
    return copy;
  }

  const Problem p_;
  const Tiles& tiles_;
  const int64_t pixels_, row_, column_, thread_floats_;
};

}  // namespace

std::unique_ptr<Convolution> pointwise_gradient(const Problem& p) {
  const Tiles* found = tiles();
  bool fits = static_cast<Kind>(p.kind) == Kind::kWeightGradient && !p.bfloat16 && p.groups == 1 &&
              p.kernel_h == 1 && p.kernel_w == 1 && p.stride_h == 1 && p.stride_w == 1 &&
              p.h == p.out_h && p.w == p.out_w && p.top == 0 && p.left == 0;
  if (!found || !fits || p.c % found->outer_rows || p.out_c % found->lanes ||
      p.c * p.out_c > kMostElements || p.n * p.h * p.w < kFewestPixels)
    return nullptr;
  return std::make_unique<PointwiseGradient>(p, *found);
}

}  // namespace cnnjax
