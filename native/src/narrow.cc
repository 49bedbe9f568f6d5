#include "narrow.h"

#include <algorithm>
#include <cstring>

#include "tiles.h"

namespace cnnjax {
namespace {

constexpr int64_t kMostChannels = 6;  // whose sums, of two images, stay in registers
constexpr int64_t kMostLanes = 16;
// Of two images' outputs, which stay in the second-level cache.
constexpr int64_t kMostElements = 320 << 10;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// The length of a plane's row: zeros before and after the pixels, and whole vectors from any of them.
int64_t row_length(const Problem& p, int64_t lanes) {
  return round_up(std::max(p.w + p.left, p.out_w), lanes) + lanes + p.kernel_w;
}

// A vector's lanes are pixels of a row: a row of dx is the sum over the kernel's rows and columns
// and dy's channels of a row of dy, shifted, times a weight. Each thread takes some of the images,
// two at a time.
class NarrowGradient : public Convolution {
 public:
  NarrowGradient(const Problem& p, const Tiles& tiles)
      : p_(p),
        tiles_(tiles),
        threads_(std::min(p.threads, (p.n + 1) / 2)),
        row_(row_length(p, tiles.lanes)),
        plane_(p.out_h * row_),
        image_(p.out_c * plane_),
        kernel_(round_up(p.kernel_h * p.out_c * p.kernel_w * p.c, tiles.lanes)),
        sums_(2 * p.c * tiles.lanes),
        part_(round_up(sums_ + 2 * image_, tiles.lanes)) {}

  void operator()(const Arrays& arrays, std::byte* scratch, const Team& team) override {
    auto* kernel = reinterpret_cast<float*>(scratch);
    reorder(static_cast<const float*>(arrays.kernel), kernel);
    auto* dy = static_cast<const float*>(arrays.outputs);
    auto* dx = static_cast<float*>(arrays.images);
    int64_t pairs = (p_.n + 1) / 2;
    team.share(pairs, [&](int64_t first, int64_t last, int64_t worker) {
      float *sums = kernel + kernel_ + worker * part_, *images = sums + sums_;
      std::fill_n(images, 2 * image_, 0.0f);
      for (int64_t pair = first; pair < last; ++pair)
        two(dy, 2 * pair, std::min<int64_t>(2, p_.n - 2 * pair), kernel, images, sums, dx);
    });
  }

  void pack(const void*, void*, const Team&) override {}
  size_t scratch_bytes() const override {
    return 4 * static_cast<size_t>(kernel_ + threads_ * part_);
  }
  size_t packed_bytes() const override { return 0; }
  std::string implementation() const override { return "narrow"; }

 private:
  // To [kernel_h, out_c, kernel_w, c], the taps of a row in reverse.
  void reorder(const float* from, float* to) const {
    for (int64_t i = 0; i < p_.kernel_h; ++i)
      for (int64_t o = 0; o < p_.out_c; ++o)
        for (int64_t j = p_.kernel_w - 1; j >= 0; --j)
          for (int64_t c = 0; c < p_.c; ++c)
            *to++ = from[((i * p_.kernel_w + j) * p_.c + c) * p_.out_c + o];
  }

  // `count` images, 1 or 2, from image n on.
  void two(const float* dy, int64_t n, int64_t count, const float* kernel, float* images,
           float* sums, float* dx) const {
    for (int64_t image = 0; image < count; ++image)
      spread(dy + (n + image) * p_.out_h * p_.out_w * p_.out_c, images + image * image_);
    for (int64_t y = 0; y < p_.h; ++y)
      for (int64_t x = 0; x < p_.w; x += tiles_.lanes) {
        add(images + p_.left + x, y, kernel, sums);
        int64_t pixels = std::min<int64_t>(tiles_.lanes, p_.w - x);
        for (int64_t image = 0; image < count; ++image)
          gather(sums + image * p_.c * tiles_.lanes, pixels,
                 dx + (((n + image) * p_.h + y) * p_.w + x) * p_.c);
      }
  }

  // An image's outputs to planes, whose rows have zeros at both ends.
  void spread(const float* from, float* to) const {
    to += p_.kernel_w - 1;
    for (int64_t y = 0; y < p_.out_h; ++y, from += p_.out_w * p_.out_c, to += row_)
      for (int64_t o = 0; o < p_.out_c; o += tiles_.lanes)
        for (int64_t x = 0; x < p_.out_w; x += tiles_.lanes)
          tiles_.transpose(from + x * p_.out_c + o, p_.out_c,
                           std::min<int64_t>(p_.out_w - x, tiles_.lanes), to + o * plane_ + x, plane_, tiles_.lanes);
  }

  // Row y of both images, from the column on at which `images` points.
  void add(const float* images, int64_t y, const float* kernel, float* sums) const {
    std::fill_n(sums, sums_, 0.0f);
    for (int64_t i = 0; i < p_.kernel_h; ++i) {
      int64_t from = y + p_.top - i * p_.dilation_h;
      if (from < 0 || from >= p_.out_h) continue;
      const float* row = images + from * row_;
      tiles_.correlate(row, row + image_, p_.out_c, plane_, p_.kernel_w, p_.c,
                       kernel + i * p_.out_c * p_.kernel_w * p_.c, sums);
    }
  }

  void gather(const float* sums, int64_t pixels, float* to) const {
    float row[(kMostChannels + 1) * kMostLanes];  // a pixel's vector reaches beyond its channels
    tiles_.transpose(sums, tiles_.lanes, p_.c, row, p_.c, pixels);
    std::memcpy(to, row, static_cast<size_t>(pixels * p_.c) * 4);
  }

  const Problem p_;
  const Tiles& tiles_;
  const int64_t threads_, row_, plane_, image_, kernel_, sums_, part_;
};

}  // namespace

std::unique_ptr<Convolution> narrow_gradient(const Problem& p) {
  const Tiles* found = tiles();
  bool fits = static_cast<Kind>(p.kind) == Kind::kInputGradient && !p.bfloat16 && p.groups == 1 &&
              p.stride_h == 1 && p.stride_w == 1 && p.dilation_w == 1;
  if (!found || !fits || p.c > kMostChannels || p.out_c % found->lanes ||
      2 * p.w < round_up(p.w, found->lanes) ||  // most lanes would be idle
      2 * p.out_c * p.out_h * row_length(p, found->lanes) > kMostElements)
    return nullptr;
  return std::make_unique<NarrowGradient>(p, *found);
}

}  // namespace cnnjax
