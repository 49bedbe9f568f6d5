// Included by tiles_avx2.cc and tiles_avx512.cc after they have chosen `kLanes`, the registers'
// shapes and the instructions; everything here is internal to them.

namespace cnnjax {
namespace {

typedef float Vector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Indices __attribute__((vector_size(kLanes * 4)));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

template <int kVectors>
inline void multiply_tile(const float* __restrict a, int64_t a_stride, const float* __restrict b,
                          int64_t k, float* __restrict c) {
  Vector sums[kRows][kVectors] = {};
  for (int64_t i = 0; i < k; ++i, b += kVectors * kLanes) {
    Vector right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[row][v] += right[v] * a[row * a_stride + i];
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + (row * kVectors + v) * kLanes, sums[row][v]);
}

void multiply(const float* a, int64_t a_stride, const float* b, int64_t k, int64_t columns,
              float* c) {
  columns == kLanes ? multiply_tile<1>(a, a_stride, b, k, c)
                    : multiply_tile<2>(a, a_stride, b, k, c);
}

template <int kVectors>
inline void accumulate_tile(const float* __restrict a, int64_t a_stride, const float* __restrict b,
                            int64_t b_stride, int64_t k, bool add, float* __restrict c,
                            int64_t c_stride) {
  Vector sums[kOuterRows][kVectors] = {};
  for (int64_t i = 0; i < k; ++i, a += a_stride, b += b_stride) {
    Vector right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < kOuterRows; ++row)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[row][v] += right[v] * a[row];
  }
#pragma GCC unroll 16
  for (int row = 0; row < kOuterRows; ++row)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* place = c + row * c_stride + v * kLanes;
      store(place, add ? load(place) + sums[row][v] : sums[row][v]);
    }
}

void accumulate(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t k,
                int64_t columns, bool add, float* c, int64_t c_stride) {
  columns == kLanes ? accumulate_tile<1>(a, a_stride, b, b_stride, k, add, c, c_stride)
                    : accumulate_tile<2>(a, a_stride, b, b_stride, k, add, c, c_stride);
}

template <int kChannels>
inline void correlate_of(const float* __restrict first, const float* __restrict second,
                         int64_t planes, int64_t plane, int64_t taps,
                         const float* __restrict weights, float* __restrict sums) {
  Vector totals[2][kChannels];
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c) {
    totals[0][c] = load(sums + c * kLanes);
    totals[1][c] = load(sums + (kChannels + c) * kLanes);
  }
  for (int64_t i = 0; i < planes; ++i, first += plane, second += plane)
    for (int64_t tap = 0; tap < taps; ++tap, weights += kChannels) {
      Vector one = load(first + tap), other = load(second + tap);
#pragma GCC unroll 8
      for (int c = 0; c < kChannels; ++c) {
        totals[0][c] += one * weights[c];
        totals[1][c] += other * weights[c];
      }
    }
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c) {
    store(sums + c * kLanes, totals[0][c]);
    store(sums + (kChannels + c) * kLanes, totals[1][c]);
  }
}

void correlate(const float* first, const float* second, int64_t planes, int64_t plane, int64_t taps,
               int64_t channels, const float* weights, float* sums) {
  constexpr decltype(&correlate_of<1>) kRuns[] = {correlate_of<1>, correlate_of<2>, correlate_of<3>,
                                                  correlate_of<4>, correlate_of<5>, correlate_of<6>};
  kRuns[channels - 1](first, second, planes, plane, taps, weights, sums);
}

template <int kTaps>
inline void depthwise_of(const float* __restrict x, int64_t x_row, int64_t x_column, int64_t x_tap,
                         const float* __restrict dy, int64_t pixel, int64_t rows, int64_t columns,
                         float* __restrict sums) {
  Vector totals[kTaps] = {};
  for (int64_t row = 0; row < rows; ++row, x += x_row) {
    const float* under = x;
    for (int64_t column = 0; column < columns; ++column, under += x_column, dy += pixel) {
      Vector factor = load(dy);
#pragma GCC unroll 8
      for (int tap = 0; tap < kTaps; ++tap) totals[tap] += factor * load(under + tap * x_tap);
    }
  }
#pragma GCC unroll 8
  for (int tap = 0; tap < kTaps; ++tap)
    store(sums + tap * kLanes, load(sums + tap * kLanes) + totals[tap]);
}

void depthwise(const float* x, int64_t x_row, int64_t x_column, int64_t x_tap, const float* dy,
               int64_t pixel, int64_t rows, int64_t columns, int64_t taps, float* sums) {
  constexpr decltype(&depthwise_of<1>) kRuns[] = {depthwise_of<1>, depthwise_of<2>, depthwise_of<3>,
                                                  depthwise_of<4>, depthwise_of<5>, depthwise_of<6>,
                                                  depthwise_of<7>};
  kRuns[taps - 1](x, x_row, x_column, x_tap, dy, pixel, rows, columns, sums);
}

void images(const float* const* pixels, int64_t channels, float* planes, int64_t stride) {
  for (int64_t i = 0; i < channels; i += kLanes) {
    Vector half[4][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      Vector d0 = load(pixels[x] + i), d1 = load(pixels[4 + x] + i);
      Vector d2 = load(pixels[8 + x] + i), d3 = load(pixels[12 + x] + i);
      half[0][x] = d0 - d2, half[1][x] = d1 + d2, half[2][x] = d2 - d1, half[3][x] = d1 - d3;
    }
    float* to = planes + i;
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y, to += 4 * stride) {
      auto& h = half[y];
      store(to, h[0] - h[2]);
      store(to + stride, h[1] + h[2]);
      store(to + 2 * stride, h[2] - h[1]);
      store(to + 3 * stride, h[1] - h[3]);
    }
  }
}

void gradients(const float* const* pixels, int64_t channels, float* planes, int64_t stride) {
  for (int64_t i = 0; i < channels; i += kLanes) {
    Vector half[4][2];
#pragma GCC unroll 2
    for (int x = 0; x < 2; ++x) {
      Vector d0 = load(pixels[x] + i), d1 = load(pixels[2 + x] + i);
      half[0][x] = d0, half[1][x] = d0 + d1, half[2][x] = d0 - d1, half[3][x] = -d1;
    }
    float* to = planes + i;
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y, to += 4 * stride) {
      auto& h = half[y];
      store(to, h[0]);
      store(to + stride, h[0] + h[1]);
      store(to + 2 * stride, h[0] - h[1]);
      store(to + 3 * stride, -h[1]);
    }
  }
}

inline void transform_kernel(const Vector (&taps)[9], float* planes, int64_t stride) {
  Vector half[4][3];
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    Vector ends = taps[x] + taps[6 + x];
    half[0][x] = taps[x];
    half[1][x] = 0.5f * (ends + taps[3 + x]);
    half[2][x] = 0.5f * (ends - taps[3 + x]);
    half[3][x] = taps[6 + x];
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y, planes += 4 * stride) {
    auto& h = half[y];
    store(planes, h[0]);
    store(planes + stride, 0.5f * (h[0] + h[2] + h[1]));
    store(planes + 2 * stride, 0.5f * (h[0] + h[2] - h[1]));
    store(planes + 3 * stride, h[2]);
  }
}

void kernel(const float* taps, int64_t tap, float* planes, int64_t stride) {
  Vector vectors[9];
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) vectors[i] = load(taps + i * tap);
  transform_kernel(vectors, planes, stride);
}

void kernel_gradient(const float* planes, int64_t stride, float* taps, int64_t tap) {
  Vector half[3][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    Vector m0 = load(planes + x * stride), m1 = load(planes + (4 + x) * stride);
    Vector m2 = load(planes + (8 + x) * stride), m3 = load(planes + (12 + x) * stride);
    Vector middle = 0.5f * (m1 + m2);
    half[0][x] = m0 + middle, half[1][x] = 0.5f * (m1 - m2), half[2][x] = middle + m3;
  }
#pragma GCC unroll 3
  for (int y = 0; y < 3; ++y, taps += 3 * tap) {
    auto& h = half[y];
    Vector middle = 0.5f * (h[1] + h[2]);
    store(taps, h[0] + middle);
    store(taps + tap, 0.5f * (h[1] - h[2]));
    store(taps + 2 * tap, middle + h[3]);
  }
}

// Exchanges, of all pairs of rows that are `kStep` apart, the squares off the diagonal.
template <int kStep>
inline void transpose_step(Vector (&rows)[kLanes]) {
  Indices first, second;
  for (int i = 0; i < kLanes; ++i) {
    first[i] = i & kStep ? kLanes + i - kStep : i;
    second[i] = i & kStep ? kLanes + i : i + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & kStep)) {
      Vector a = rows[i], b = rows[i + kStep];
      rows[i] = __builtin_shuffle(a, b, first);
      rows[i + kStep] = __builtin_shuffle(a, b, second);
    }
}

inline void transpose_square(Vector (&rows)[kLanes]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  transpose_step<4>(rows);
  if constexpr (kLanes == 16) transpose_step<kLanes / 2>(rows);
}

void transpose(const float* from, int64_t from_stride, int64_t rows, float* to, int64_t to_stride,
               int64_t columns) {
  Vector square[kLanes];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) square[i] = i < rows ? load(from + i * from_stride) : Vector{};
  transpose_square(square);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i)
    if (i < columns) store(to + i * to_stride, square[i]);
}

void transposed_kernel(const float* taps, int64_t tap, int64_t in, float* planes, int64_t stride,
                       int64_t row) {
  float squares[9][kLanes][kLanes];
  for (int i = 0; i < 9; ++i) {
    Vector rows[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) rows[j] = load(taps + (8 - i) * tap + j * in);
    transpose_square(rows);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) store(squares[i][j], rows[j]);
  }
  for (int j = 0; j < kLanes; ++j) kernel(squares[0][j], kLanes * kLanes, planes + j * row, stride);
}

template <bool kResidual>
inline void outputs_of(const float* planes, int64_t stride, int64_t first, int64_t channels,
                       const float* bias, const float* const* residuals, float low, float high,
                       float* const* pixels) {
  planes -= first;
  for (int64_t i = first; i < first + channels; i += kLanes) {
    Vector half[2][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      const float* from = planes + x * stride + i;
      Vector m1 = load(from + 4 * stride), m2 = load(from + 8 * stride);
      half[0][x] = load(from) + m1 + m2;
      half[1][x] = m1 - m2 - load(from + 12 * stride);
    }
    Vector add = bias ? load(bias + i) : Vector{};
#pragma GCC unroll 2
    for (int y = 0; y < 2; ++y) {
      auto& h = half[y];
      Vector results[2] = {h[0] + h[1] + h[2] + add, h[1] - h[2] - h[3] + add};
#pragma GCC unroll 2
      for (int x = 0; x < 2; ++x) {
        Vector v = results[x];
        if (kResidual) v += load(residuals[2 * y + x] + i);
        v = v < low ? Vector{} + low : v;  // in this order, NaN stays NaN
        v = v > high ? Vector{} + high : v;
        store(pixels[2 * y + x] + i, v);
      }
    }
  }
}

void outputs(const float* planes, int64_t stride, int64_t first, int64_t channels,
             const float* bias, const float* const* residuals, float low, float high,
             float* const* pixels) {
  auto* run = residuals ? outputs_of<true> : outputs_of<false>;
  run(planes, stride, first, channels, bias, residuals, low, high, pixels);
}

}  // namespace
}  // namespace cnnjax
