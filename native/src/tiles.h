// The arithmetic of our own convolutions on vectors, compiled once for every width of them.

#pragma once

#include <cstdint>

namespace cnnjax {

// Rows of pixels or tiles come as pointers, so that a caller lets those beyond an image's border
// point to zeros. Lengths in channels are multiples of `lanes`; strides are in floats.
struct Tiles {
  int lanes;        // floats of a vector
  int rows;         // of `multiply`
  int outer_rows;   // of `accumulate`

  // c[row, column] = sum over k of a[row * a_stride + k] * b[k * columns + column] for all `rows`
  // and one or two vectors of columns; c is dense.
  void (*multiply)(const float* a, int64_t a_stride, const float* b, int64_t k, int64_t columns,
                   float* c);
  // c[row * c_stride + column] (+)= sum over k of a[k * a_stride + row] * b[k * b_stride + column]
  // for all `outer_rows` and one or two vectors of columns.
  void (*accumulate)(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t k,
                     int64_t columns, bool add, float* c, int64_t c_stride);
  // to[column * to_stride + row] = from[row * from_stride + column] for at most `lanes` rows and
  // columns. Whole vectors are read and written, rows that are missing as zeros.
  void (*transpose)(const float* from, int64_t from_stride, int64_t rows, float* to,
                    int64_t to_stride, int64_t columns);
  // sums[0][channel][lane] += sum over planes p and taps t of first[p * plane + t + lane] *
  // weights[p][t][channel], for 1 to 6 channels; sums[1] the same of `second`.
  void (*correlate)(const float* first, const float* second, int64_t planes, int64_t plane,
                    int64_t taps, int64_t channels, const float* weights, float* sums);

  // sums[tap][lane] += sum over rows and columns of x[row * x_row + column * x_column + tap * x_tap +
  // lane] * dy[(row * columns + column) * pixel + lane], for 1 to 7 taps.
  void (*depthwise)(const float* x, int64_t x_row, int64_t x_column, int64_t x_tap, const float* dy,
                    int64_t pixel, int64_t rows, int64_t columns, int64_t taps, float* sums);

  // Lavin and Gray 2016, https://arxiv.org/abs/1509.09308, F(2 x 2, 3 x 3): with images d, kernel g,
  // y = A'[(G g G') * (B'd B)]A; of gradients, dg = G'[(A dy A') * (B'd B)]G. Transformed arrays are
  // 16 planes.
  void (*images)(const float* const* pixels, int64_t channels, float* planes, int64_t stride);
  void (*gradients)(const float* const* pixels, int64_t channels, float* planes, int64_t stride);
  // A vector of each of the nine taps, `tap` apart, to planes `stride` apart.
  void (*kernel)(const float* taps, int64_t tap, float* planes, int64_t stride);
  void (*kernel_gradient)(const float* planes, int64_t stride, float* taps, int64_t tap);
  // As `kernel`, for a square of `lanes` x `lanes` input (`in` apart) and output channels; the taps
  // are taken in reverse, and transposed: an output channel's vector is `row` after the last one's.
  void (*transposed_kernel)(const float* taps, int64_t tap, int64_t in, float* planes,
                            int64_t stride, int64_t row);
  // The channels [first, first + channels) of four pixels, whose planes alone begin at the first;
  // ends with min(max(y + bias + residual, low), high), where bias and residuals may be null.
  void (*outputs)(const float* planes, int64_t stride, int64_t first, int64_t channels,
                  const float* bias, const float* const* residuals, float low, float high,
                  float* const* pixels);
};

// For this processor, or null; ONEDNN_MAX_CPU_ISA limits it as it limits oneDNN.
const Tiles* tiles();

}  // namespace cnnjax
