#include "depthwise.h"

#include <algorithm>
#include <cstring>

#include "tiles.h"

namespace cnnjax {
namespace {

constexpr int64_t kFewestTaps = 5, kMostTaps = 7;  // of a kernel's row, whose sums stay in registers
constexpr int64_t kMostElements = 256 << 10;       // of a plane, which stays in the second-level cache
constexpr int64_t kPixels = 512;  // of dy, which stay in the first-level cache for the kernel's rows

// A vector's lanes are channels. Each thread takes some vectors of channels, image by image: copies
// a plane of them and its padding, then adds, for each row of the kernel, the products of dy with
// the pixels under the row's taps.
class DepthwiseGradient : public Convolution {
 public:
  DepthwiseGradient(const Problem& p, const Tiles& tiles)
      : p_(p),
        tiles_(tiles),
        row_((p.w + p.left + p.right) * tiles.lanes),
        plane_((p.h + p.top + p.bottom) * row_),
        sums_(p.kernel_h * p.kernel_w * tiles.lanes),
        blocks_(p.c / tiles.lanes),
        threads_(std::min(p.threads, blocks_)) {}

  void operator()(const Arrays& arrays, std::byte* scratch, const Team& team) override {
    auto* memory = reinterpret_cast<float*>(scratch);
    auto *x = static_cast<const float*>(arrays.images),
         *dy = static_cast<const float*>(arrays.outputs);
    auto* dw = static_cast<float*>(arrays.kernel);
    for (int64_t thread = 0; thread < threads_; ++thread)
      std::fill_n(memory + thread * (plane_ + sums_), plane_, 0.0f);
    team.run(blocks_, [&](int64_t block, int64_t worker) {
      float* plane = memory + worker * (plane_ + sums_);
      float* sums = plane + plane_;
      int64_t channel = block * tiles_.lanes;
      std::fill_n(sums, sums_, 0.0f);
      for (int64_t n = 0; n < p_.n; ++n) {
        copy(x + n * p_.h * p_.w * p_.c + channel, plane);
        add(plane, dy + n * p_.out_h * p_.out_w * p_.c + channel, sums);
      }
      for (int64_t tap = 0; tap < p_.kernel_h * p_.kernel_w; ++tap)
        std::memcpy(dw + tap * p_.c + channel, sums + tap * tiles_.lanes, vector_bytes());
    });
  }

  void pack(const void*, void*, const Team&) override {}
  size_t scratch_bytes() const override {
    return 4 * static_cast<size_t>(threads_ * (plane_ + sums_));
  }
  size_t packed_bytes() const override { return 0; }
  std::string implementation() const override { return "depthwise"; }

 private:
  size_t vector_bytes() const { return 4 * static_cast<size_t>(tiles_.lanes); }

  // An image's pixels into the plane, whose padding stays as it is.
  void copy(const float* from, float* plane) const {
    for (int64_t y = 0; y < p_.h; ++y) {
      float* to = plane + (p_.top + y) * row_ + p_.left * tiles_.lanes;
      for (int64_t x = 0; x < p_.w; ++x, from += p_.c, to += tiles_.lanes)
        std::memcpy(to, from, vector_bytes());
    }
  }

  void add(const float* plane, const float* dy, float* sums) const {
    int64_t step = std::max<int64_t>(1, kPixels / p_.out_w);
    for (int64_t first = 0; first < p_.out_h; first += step)
      for (int64_t i = 0; i < p_.kernel_h; ++i) {
        const float* under = plane + (first * p_.stride_h + i * p_.dilation_h) * row_;
        tiles_.depthwise(under, p_.stride_h * row_, p_.stride_w * tiles_.lanes,
                         p_.dilation_w * tiles_.lanes, dy + first * p_.out_w * p_.c, p_.c,
                         std::min(step, p_.out_h - first), p_.out_w, p_.kernel_w,
                         sums + i * p_.kernel_w * tiles_.lanes);
      }
  }

  const Problem p_;
  const Tiles& tiles_;
  const int64_t row_, plane_, sums_, blocks_, threads_;
};

}  // namespace

std::unique_ptr<Convolution> depthwise_gradient(const Problem& p) {
  const Tiles* found = tiles();
  bool fits = static_cast<Kind>(p.kind) == Kind::kWeightGradient && !p.bfloat16 &&
              p.groups == p.c && p.c == p.out_c;
  if (!found || !fits || p.c % found->lanes || p.kernel_w < kFewestTaps || p.kernel_w > kMostTaps ||
      (p.h + p.top + p.bottom) * (p.w + p.left + p.right) * found->lanes > kMostElements)
    return nullptr;
  return std::make_unique<DepthwiseGradient>(p, *found);
}

}  // namespace cnnjax
