// Convolutions of the oneDNN that this is compiled and linked with, in ms: forward, the gradient of
// images, that of the kernel. Images stay in NHWC, kernels in the order that oneDNN wants.
//
//   g++ -std=c++20 -O2 -I ENV/include -L ENV/lib benchmarks/onednn.cc -ldnnl
//   LD_LIBRARY_PATH=ENV/lib ./a.out
//
// That of the wheel `onednn` finds a processor with OCL_ICD_FILENAMES=ENV/lib/libintelocl.so alone.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

namespace {

using dnnl::memory;
using Clock = std::chrono::steady_clock;

constexpr int kFirst = 3, kRepetitions = 30;

struct Shape {
  long n, size, in, out, kernel, stride, groups;
};

// ResNet-50's at a batch of 8, then depthwise ones.
constexpr Shape kShapes[] = {
    {8, 224, 3, 64, 7, 2, 1},    {8, 56, 64, 64, 1, 1, 1},    {8, 56, 64, 64, 3, 1, 1},
    {8, 56, 64, 256, 1, 1, 1},   {8, 28, 128, 128, 3, 1, 1},  {8, 56, 128, 128, 3, 2, 1},
    {8, 14, 1024, 256, 1, 1, 1}, {8, 14, 256, 256, 3, 1, 1},  {8, 7, 512, 512, 3, 1, 1},
    {8, 7, 512, 2048, 1, 1, 1},  {16, 112, 32, 32, 3, 1, 32}, {4, 56, 96, 96, 7, 1, 96},
};

memory filled(const memory::desc& desc, const dnnl::engine& engine) {
  memory array(desc, engine);
  std::fill_n(static_cast<float*>(array.get_data_handle()), desc.get_size() / 4, 0.5f);
  return array;
}

double median_ms(const dnnl::primitive& primitive, dnnl::stream& stream,
                 const std::unordered_map<int, memory>& arguments) {
  std::vector<double> times;
  for (int i = 0; i < kFirst + kRepetitions; ++i) {
    auto start = Clock::now();
    primitive.execute(stream, arguments);
    stream.wait();
    std::chrono::duration<double, std::milli> taken = Clock::now() - start;
    if (i >= kFirst) times.push_back(taken.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void measure(const Shape& s, const dnnl::engine& engine, dnnl::stream& stream) {
  long pad = s.kernel / 2, size = (s.size + 2 * pad - s.kernel) / s.stride + 1;
  memory::dims dims{s.out / s.groups, s.in / s.groups, s.kernel, s.kernel};
  if (s.groups > 1) dims.insert(dims.begin(), s.groups);
  memory::dims strides(2, s.stride), padding(2, pad);
  auto type = memory::data_type::f32;
  memory::desc x({s.n, s.in, s.size, s.size}, type, memory::format_tag::nhwc),
      w(dims, type, memory::format_tag::any),
      y({s.n, s.out, size, size}, type, memory::format_tag::nhwc);

  auto direct = dnnl::algorithm::convolution_direct;
  auto training = dnnl::prop_kind::forward_training;
  dnnl::convolution_forward::primitive_desc forward(engine, training, direct, x, w, y, strides,
                                                    padding, padding);
  dnnl::convolution_backward_data::primitive_desc images(engine, direct, x, w, y, strides, padding,
                                                         padding, forward);
  dnnl::convolution_backward_weights::primitive_desc kernel(engine, direct, x, w, y, strides,
                                                            padding, padding, forward);
  memory mx = filled(x, engine), my = filled(y, engine);
  std::printf("%ld, %ld, %ld-%ld, %ldx%ld, %ld, %ld groups: %.2f %.2f %.2f\n", s.n, s.size, s.in,
              s.out, s.kernel, s.kernel, s.stride, s.groups,
              median_ms(dnnl::convolution_forward(forward), stream,
                        {{DNNL_ARG_SRC, mx},
                         {DNNL_ARG_WEIGHTS, filled(forward.weights_desc(), engine)},
                         {DNNL_ARG_DST, my}}),
              median_ms(dnnl::convolution_backward_data(images), stream,
                        {{DNNL_ARG_DIFF_SRC, mx},
                         {DNNL_ARG_WEIGHTS, filled(images.weights_desc(), engine)},
                         {DNNL_ARG_DIFF_DST, my}}),
              median_ms(dnnl::convolution_backward_weights(kernel), stream,
                        {{DNNL_ARG_SRC, mx},
                         {DNNL_ARG_DIFF_WEIGHTS, filled(kernel.diff_weights_desc(), engine)},
                         {DNNL_ARG_DIFF_DST, my}}));
}

}  // namespace

int main() {
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  std::printf("oneDNN %d.%d\n", dnnl_version()->major, dnnl_version()->minor);
  for (const Shape& shape : kShapes) measure(shape, engine, stream);
}
