#include "product.h"

#include <algorithm>

namespace cnnjax {
namespace {

// Of the kernel: beside fewer, to order them as oneDNN's convolutions want them costs little.
constexpr int64_t kFewestElements = 256 << 10;

// Images are [pixels, c], outputs [pixels, out_c], the kernel [c, out_c], as they stand in memory.
class Product : public Convolution {
 public:
  explicit Product(const Problem& p)
      : kind_(static_cast<Kind>(p.kind)), pixels_(p.n * p.h * p.w), c_(p.c), out_c_(p.out_c) {}

  void operator()(const Arrays& arrays, std::byte*, const Team& team) override {
    auto* x = static_cast<float*>(arrays.images);
    auto* w = static_cast<float*>(arrays.kernel);
    auto* y = static_cast<float*>(arrays.outputs);
    switch (kind_) {
      case Kind::kForward: multiply(team, 'N', 'N', pixels_, out_c_, c_, x, c_, w, out_c_, y); break;
      case Kind::kInputGradient:
        multiply(team, 'N', 'T', pixels_, c_, out_c_, y, out_c_, w, out_c_, x);
        break;
      default: multiply(team, 'T', 'N', c_, out_c_, pixels_, x, c_, y, out_c_, w);
    }
  }

  void pack(const void*, void*, const Team&) override {}
  size_t scratch_bytes() const override { return 0; }
  size_t packed_bytes() const override { return 0; }
  std::string implementation() const override { return "product"; }

 private:
  // to [rows, columns] = a b, each transposed or not: a part of the longer side for each thread.
  static void multiply(const Team& team, char a_as, char b_as, int64_t rows, int64_t columns,
                       int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row,
                       float* to) {
    bool high = rows > columns;
    int64_t all = high ? rows : columns, parts = std::min(team.threads(), all);
    team.run(parts, [&](int64_t part, int64_t) {
      int64_t first = all * part / parts, count = all * (part + 1) / parts - first;
      int64_t row = high ? first : 0, column = high ? 0 : first;
      auto status = dnnl::sgemm(a_as, b_as, high ? count : rows, high ? columns : count, depth, 1.0f,
                                a + row * (a_as == 'N' ? a_row : 1), a_row,
                                b + column * (b_as == 'N' ? 1 : b_row), b_row, 0.0f,
                                to + row * columns + column, columns);
      if (status != dnnl::status::success)
        throw dnnl::error(static_cast<dnnl_status_t>(status), "could not multiply matrices");
    });
  }

  const Kind kind_;
  const int64_t pixels_, c_, out_c_;
};

}  // namespace

std::unique_ptr<Convolution> product(const Problem& p) {
  bool fits = static_cast<Kind>(p.kind) != Kind::kInference && !p.bfloat16 && p.groups == 1 &&
              p.kernel_h == 1 && p.kernel_w == 1 && p.stride_h == 1 && p.stride_w == 1 &&
              p.h == p.out_h && p.w == p.out_w && p.top == 0 && p.left == 0;
  if (!fits || p.c * p.out_c < kFewestElements) return nullptr;
  return std::make_unique<Product>(p);
}

}  // namespace cnnjax
