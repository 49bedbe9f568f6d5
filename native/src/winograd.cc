#include "winograd.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "tiles.h"

namespace cnnjax {
namespace {

constexpr int64_t kPad = 16;  // floats after each row, lest rows share the cache's sets

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// The size of a length's parts if they are even, at most `most`, and multiples of `unit`.
int64_t part(int64_t length, int64_t most, int64_t unit) {
  return round_up(divide_up(length, divide_up(length, most)), unit);
}

// Images' outputs, divided into tiles of 2 x 2.
struct Grid {
  explicit Grid(const Problem& p)
      : across(divide_up(p.out_w, 2)), down(divide_up(p.out_h, 2)), tiles(p.n * across * down) {}

  // Fills `places` with the addresses of a tile's kSize x kSize pixels in images of h x w pixels
  // that begin at (top, left) of the tiles, and with `outside` where there is none.
  template <int kSize, typename Float>
  void pixels(int64_t tile, Float* images, int64_t h, int64_t w, int64_t channels, int64_t top,
              int64_t left, Float* outside, Float** places) const {
    int64_t x = tile % across * 2 - left, y = tile / across % down * 2 - top;
    Float* corner = images + ((tile / across / down * h + y) * w + x) * channels;
    for (int64_t i = 0; i < kSize; ++i)
      for (int64_t j = 0; j < kSize; ++j) {
        bool inside = y + i >= 0 && y + i < h && x + j >= 0 && x + j < w;
        places[i * kSize + j] = inside ? corner + (i * w + j) * channels : outside;
      }
  }

  int64_t across, down, tiles;
};

// Forward, the gradient of images, and inference. A thread transforms blocks of tiles, multiplies
// their 16 planes with the kernel's, and transforms the products back.
class Winograd : public Convolution {
 public:
  // A gradient's problem is that of the convolution of dy with the kernel reversed and transposed.
  Winograd(const Problem& p, const Tiles& tiles)
      : p_(p), tiles_(tiles), kind_(static_cast<Kind>(p.kind)), grid_(p) {
    panel_ = 2 * tiles.lanes;
    // A block stays in the second-level cache, but every block streams the whole kernel.
    int64_t most = std::clamp<int64_t>(kBlockFloats / (16 * (p.c + p.out_c)), kFewTiles, kManyTiles);
    block_ = part(divide_up(grid_.tiles, p.threads), most, tiles.rows);
    row_ = p.c + kPad;
    plane_ = block_ * row_ + kPad;
    product_ = block_ * p.out_c + kPad;
    thread_floats_ = 16 * (plane_ + product_) + p.out_c + std::max(p.c, p.out_c);
  }

  void operator()(const Arrays& arrays, std::byte* scratch, const Team& team) override {
    auto* memory = reinterpret_cast<float*>(scratch);
    const float* kernel = static_cast<const float*>(arrays.kernel);
    bool packs = kind_ != Kind::kInference;
    float* transformed = packs ? memory : const_cast<float*>(kernel);
    float* rest = memory + (packs ? packed_floats() : 0);
    Arrays ours = arrays;
    if (kind_ == Kind::kInputGradient) std::swap(ours.images, ours.outputs);
    int64_t blocks = divide_up(grid_.tiles, block_);
    if (packs) transform(kernel, transformed, team);
    team.run(blocks, [&](int64_t i, int64_t worker) {
      run(ours, transformed, i * block_, std::min(grid_.tiles, (i + 1) * block_),
          rest + worker * thread_floats_);
    });
  }

  void pack(const void* kernel, void* packed, const Team& team) override {
    transform(static_cast<const float*>(kernel), static_cast<float*>(packed), team);
  }

  size_t scratch_bytes() const override {
    return 4 * static_cast<size_t>(packed_floats() + p_.threads * thread_floats_);
  }
  size_t packed_bytes() const override { return 4 * static_cast<size_t>(packed_floats()); }
  std::string implementation() const override { return "winograd"; }

 private:
  static constexpr int64_t kBlockFloats = 192 << 10, kFewTiles = 56, kManyTiles = 112;

  int64_t kernel_plane() const { return p_.c * p_.out_c + kPad; }
  int64_t packed_floats() const { return 16 * kernel_plane(); }
  int64_t width(int64_t panel) const { return std::min(panel_, p_.out_c - panel); }

  // The kernel as [plane, panel, c, columns of the panel].
  void transform(const float* kernel, float* packed, const Team& team) const {
    int64_t in = p_.c, out = p_.out_c, lanes = tiles_.lanes, tap = in * out;
    bool transpose = kind_ == Kind::kInputGradient;
    int64_t rows = transpose ? lanes : 1;
    // In this order, what is written lies together.
    int64_t steps = in / lanes, all = divide_up(out, panel_) * steps;
    team.share(all, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t index = begin; index < end; ++index) {
        int64_t panel = index / steps * panel_, first = index % steps * lanes;
        for (int64_t i = first; i < first + lanes; i += rows)
          for (int64_t j = panel; j < panel + width(panel); j += lanes) {
            float* to = packed + panel * in + i * width(panel) + j - panel;
            if (transpose)
              tiles_.transposed_kernel(kernel + j * in + i, tap, in, to, kernel_plane(),
                                       width(panel));
            else
              tiles_.kernel(kernel + i * out + j, tap, to, kernel_plane());
          }
      }
    });
  }

  void run(const Arrays& arrays, const float* packed, int64_t first, int64_t last,
           float* memory) const {
    float* images = memory;
    float* products = images + 16 * plane_;
    float* sink = products + 16 * product_;  // of outputs beyond the border
    float* zeros = sink + p_.out_c;
    std::fill_n(zeros, std::max(p_.c, p_.out_c), 0.0f);

    const float* inputs[16];
    int64_t rows = round_up(last - first, tiles_.rows);
    for (int64_t i = 0; i < rows; ++i) {
      // Rows that fill the last product up are as good as any other.
      grid_.pixels<4, const float>(std::min(first + i, last - 1),
                                   static_cast<const float*>(arrays.images), p_.h, p_.w, p_.c,
                                   p_.top, p_.left, zeros, inputs);
      tiles_.images(inputs, p_.c, images + i * row_, plane_);
    }
    for (int64_t plane = 0; plane < 16; ++plane)
      for (int64_t panel = 0; panel < p_.out_c; panel += panel_) {
        const float* kernel = packed + plane * kernel_plane() + panel * p_.c;
        for (int64_t row = 0; row < rows; row += tiles_.rows)
          tiles_.multiply(images + plane * plane_ + row * row_, row_, kernel, p_.c, width(panel),
                          products + plane * product_ + panel * rows + row * width(panel));
      }

    auto activation = static_cast<Activation>(p_.activation);
    constexpr float infinity = std::numeric_limits<float>::infinity();
    float low = activation == Activation::kNone ? -infinity : 0.0f;
    float high = activation == Activation::kRelu6 ? 6.0f : infinity;
    for (int64_t i = 0; i < last - first; ++i) {
      float *outputs[4], *residuals[4];
      auto take = [&](void* from, float* outside, float** places) {
        grid_.pixels<2>(first + i, static_cast<float*>(from), p_.out_h, p_.out_w, p_.out_c, 0, 0,
                        outside, places);
      };
      take(arrays.outputs, sink, outputs);
      if (p_.residual) take(arrays.residual, zeros, residuals);
      for (int64_t panel = 0; panel < p_.out_c; panel += panel_)
        tiles_.outputs(products + panel * rows + i * width(panel), product_, panel, width(panel),
                       p_.bias ? static_cast<const float*>(arrays.bias) : nullptr,
                       p_.residual ? residuals : nullptr, low, high, outputs);
    }
  }

  const Problem p_;
  const Tiles& tiles_;
  const Kind kind_;
  const Grid grid_;
  int64_t panel_, block_, row_, plane_, product_, thread_floats_;
};

// The gradient of the kernel: for every plane a matrix product over tiles. A job adds a range of
// tiles for a chunk of the matrices; where chunks don't occupy all threads, each is several jobs,
// whose sums are added in their order.
class WinogradGradient : public Convolution {
 public:
  WinogradGradient(const Problem& p, const Tiles& tiles) : p_(p), tiles_(tiles), grid_(p) {
    rows_ = part(p.c, kChunkRows, tiles.lanes);  // of whole vectors, hence of whole outer rows
    columns_ = part(p.out_c, kChunkColumns, 2 * tiles.lanes);
    row_chunks_ = divide_up(p.c, rows_);
    chunks_ = row_chunks_ * divide_up(p.out_c, columns_);
    splits_ = p.threads / std::gcd(p.threads, chunks_);
    image_plane_ = kBlock * (rows_ + kPad) + kPad;
    gradient_plane_ = kBlock * (columns_ + kPad) + kPad;
    chunk_ = 16 * rows_ * columns_;
    thread_floats_ = 16 * (image_plane_ + gradient_plane_) + std::max(rows_, columns_);
  }

  void operator()(const Arrays& arrays, std::byte* scratch, const Team& team) override {
    auto* memory = reinterpret_cast<float*>(scratch);
    float* sums = memory + p_.threads * thread_floats_;
    auto* dw = static_cast<float*>(arrays.kernel);
    team.run(chunks_ * splits_, [&](int64_t job, int64_t worker) {
      int64_t split = job % splits_, chunk = job / splits_;
      float* to = sums + (splits_ > 1 ? job : worker) * chunk_;
      add(arrays, chunk, grid_.tiles * split / splits_, grid_.tiles * (split + 1) / splits_,
          memory + worker * thread_floats_, to);
      if (splits_ == 1) finish(chunk, 0, rows_, to, dw);
    });
    if (splits_ == 1) return;
    int64_t groups = rows_ / tiles_.outer_rows;
    team.run(chunks_ * groups, [&](int64_t i, int64_t) {
      merge(i / groups, i % groups * tiles_.outer_rows, sums, dw);
    });
  }

  void pack(const void*, void*, const Team&) override {}
  size_t scratch_bytes() const override {
    int64_t sums = splits_ > 1 ? chunks_ * splits_ : p_.threads;
    return 4 * static_cast<size_t>(p_.threads * thread_floats_ + sums * chunk_);
  }
  size_t packed_bytes() const override { return 0; }
  std::string implementation() const override { return "winograd"; }

 private:
  // A chunk's sums and a block of transformed tiles stay in the second-level cache.
  static constexpr int64_t kChunkRows = 64, kChunkColumns = 128, kBlock = 32;

  struct Chunk {
    int64_t row, rows, column, columns;
  };

  Chunk chunk(int64_t i) const {
    int64_t row = i % row_chunks_ * rows_, column = i / row_chunks_ * columns_;
    return {row, std::min(rows_, p_.c - row), column, std::min(columns_, p_.out_c - column)};
  }

  // The tiles [first, last) of a chunk, into `sums`, [plane, rows_, columns_].
  void add(const Arrays& arrays, int64_t index, int64_t first, int64_t last, float* memory,
           float* sums) const {
    Chunk c = chunk(index);
    auto* x = static_cast<const float*>(arrays.images) + c.row;
    auto* dy = static_cast<const float*>(arrays.outputs) + c.column;
    float* images = memory;
    float* gradients = images + 16 * image_plane_;
    float* zeros = gradients + 16 * gradient_plane_;
    std::fill_n(zeros, std::max(rows_, columns_), 0.0f);
    if (first == last) std::fill_n(sums, chunk_, 0.0f);
    for (int64_t start = first; start < last; start += kBlock) {
      int64_t tiles = std::min(kBlock, last - start);
      for (int64_t i = 0; i < tiles; ++i) {
        const float* pixels[16];
        grid_.pixels<4, const float>(start + i, x, p_.h, p_.w, p_.c, p_.top, p_.left, zeros, pixels);
        tiles_.images(pixels, c.rows, images + i * (rows_ + kPad), image_plane_);
        grid_.pixels<2, const float>(start + i, dy, p_.out_h, p_.out_w, p_.out_c, 0, 0, zeros, pixels);
        tiles_.gradients(pixels, c.columns, gradients + i * (columns_ + kPad), gradient_plane_);
      }
      // Sums over a block begin at zero, so that rounding grows with the number of blocks alone.
      for (int64_t plane = 0; plane < 16; ++plane)
        for (int64_t column = 0; column < c.columns; column += 2 * tiles_.lanes)
          for (int64_t row = 0; row < c.rows; row += tiles_.outer_rows)
            tiles_.accumulate(images + plane * image_plane_ + row, rows_ + kPad,
                              gradients + plane * gradient_plane_ + column, columns_ + kPad, tiles,
                              std::min<int64_t>(2 * tiles_.lanes, c.columns - column),
                              start > first, sums + (plane * rows_ + row) * columns_ + column,
                              columns_);
    }
  }

  // Adds the jobs' sums of some rows of a chunk.
  void merge(int64_t index, int64_t row, float* sums, float* dw) const {
    float* total = sums + index * splits_ * chunk_;
    for (int64_t plane = 0; plane < 16; ++plane) {
      float* to = total + (plane * rows_ + row) * columns_;
      for (int64_t split = 1; split < splits_; ++split)
        for (int64_t i = 0; i < tiles_.outer_rows * columns_; ++i) to[i] += to[split * chunk_ + i];
    }
    finish(index, row, row + tiles_.outer_rows, total, dw);
  }

  // Transforms a chunk's rows to where they belong.
  void finish(int64_t index, int64_t first, int64_t last, const float* sums, float* dw) const {
    Chunk c = chunk(index);
    for (int64_t row = first; row < std::min(last, c.rows); ++row)
      for (int64_t column = 0; column < c.columns; column += tiles_.lanes)
        tiles_.kernel_gradient(sums + row * columns_ + column, rows_ * columns_,
                               dw + (c.row + row) * p_.out_c + c.column + column,
                               p_.c * p_.out_c);
  }

  const Problem p_;
  const Tiles& tiles_;
  const Grid grid_;
  int64_t rows_, columns_, row_chunks_, chunks_, splits_, image_plane_, gradient_plane_, chunk_,
      thread_floats_;
};

}  // namespace

std::unique_ptr<Convolution> winograd(const Problem& p) {
  const Tiles* found = tiles();
  bool fits = !p.bfloat16 && p.groups == 1 && p.kernel_h == 3 && p.kernel_w == 3 &&
              p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == 1 && p.dilation_w == 1 &&
              std::max({p.top, p.bottom, p.left, p.right}) <= 2 &&
              p.activation <= static_cast<int64_t>(Activation::kRelu6);
  if (!found || !fits || p.c % found->lanes || p.out_c % found->lanes) return nullptr;
  if (static_cast<Kind>(p.kind) == Kind::kWeightGradient)
    return std::make_unique<WinogradGradient>(p, *found);
  // With fewer tiles, transforming or only reading the larger kernel takes longer than it saves.
  if (Grid(p).tiles < (static_cast<Kind>(p.kind) == Kind::kInference ? 64 : 192)) return nullptr;
  Problem ours = p;
  if (static_cast<Kind>(p.kind) == Kind::kInputGradient) {
    std::swap(ours.h, ours.out_h);
    std::swap(ours.w, ours.out_w);
    std::swap(ours.c, ours.out_c);
    ours.top = 2 - p.top;
    ours.left = 2 - p.left;
  }
  return std::make_unique<Winograd>(ours, *found);
}

}  // namespace cnnjax
