// What XLA calls, and what Python asks for: see cnnjax_onednn/__init__.py.

#include <cstdio>
#include <cstring>

#include "call.h"
#include "channels.h"
#include "convolution.h"

namespace cnnjax {
namespace {

ffi::Error convolve(Kind kind, const ffi::AnyBuffer& images, const ffi::AnyBuffer& kernel,
                    const ffi::AnyBuffer& outputs, const Window& window, int64_t threads) {
  Problem problem;
  auto error = describe(kind, images, kernel.dimensions(), outputs, window, problem);
  if (error.failure()) return error;
  if (kernel.element_type() != images.element_type())
    return invalid("images and kernel must have one element type");
  problem.threads = threads;
  return guarded(threads, [&] {
    Convolution& convolution = find(problem);
    Arrays arrays{images.untyped_data(), kernel.untyped_data(), outputs.untyped_data(), nullptr,
                  nullptr};
    convolution(arrays, scratch(convolution.scratch_bytes()));
  });
}

#define CNNJAX_WINDOW                                                                        \
  Integers strides, Integers padding, Integers dilation, int64_t groups, \
      int64_t threads

ffi::Error forward(ffi::AnyBuffer images, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> outputs,
                   CNNJAX_WINDOW) {
  return convolve(Kind::kForward, images, kernel, *outputs, {strides, padding, dilation, groups}, threads);
}

ffi::Error input_gradient(ffi::AnyBuffer kernel, ffi::AnyBuffer outputs,
                          ffi::Result<ffi::AnyBuffer> images, CNNJAX_WINDOW) {
  return convolve(Kind::kInputGradient, *images, kernel, outputs,
                  {strides, padding, dilation, groups}, threads);
}

ffi::Error weight_gradient(ffi::AnyBuffer images, ffi::AnyBuffer outputs,
                           ffi::Result<ffi::AnyBuffer> kernel, CNNJAX_WINDOW) {
  return convolve(Kind::kWeightGradient, images, *kernel, outputs,
                  {strides, padding, dilation, groups}, threads);
}

#undef CNNJAX_WINDOW

// The rows of an array [..., channels] in float32; the channels are the last dimension.
int64_t rows(const ffi::Buffer<ffi::F32>& x) {
  return static_cast<int64_t>(x.element_count()) / x.dimensions().back();
}

ffi::Error channel_moments(ffi::Buffer<ffi::F32> x, ffi::Result<ffi::Buffer<ffi::F32>> result,
                           int64_t threads) {
  if (x.dimensions().size() == 0 || x.element_count() == 0) return invalid("no values to average");
  int64_t channels = x.dimensions().back();
  if (static_cast<int64_t>(result->element_count()) != 2 * channels)
    return invalid("moments are [2, channels]");
  return guarded(threads, [&] {
    moments(x.typed_data(), rows(x), channels, static_cast<int>(threads), result->typed_data());
  });
}

ffi::Error channel_sums(ffi::Buffer<ffi::F32> v, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> mean,
                        ffi::Result<ffi::Buffer<ffi::F32>> result,
                           int64_t threads) {
  if (x.dimensions().size() == 0 || x.element_count() == 0) return invalid("no values to add");
  int64_t channels = x.dimensions().back();
  if (v.element_count() != x.element_count() || v.dimensions().back() != channels ||
      static_cast<int64_t>(mean.element_count()) != channels ||
      static_cast<int64_t>(result->element_count()) != 2 * channels)
    return invalid("the shapes of values, images, mean and sums don't fit together");
  return guarded(threads, [&] {
    sums(v.typed_data(), x.typed_data(), mean.typed_data(), rows(x), channels, threads,
         result->typed_data());
  });
}

#define CNNJAX_ATTRIBUTES               \
  .Attr<Integers>("strides")            \
      .Attr<Integers>("padding")        \
      .Attr<Integers>("dilation")       \
      .Attr<int64_t>("groups")          \
      .Attr<int64_t>("threads")

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_forward, forward,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  CNNJAX_ATTRIBUTES);

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_input_gradient, input_gradient,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  CNNJAX_ATTRIBUTES);

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_weight_gradient, weight_gradient,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  CNNJAX_ATTRIBUTES);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cnnjax_onednn_channel_moments, channel_moments,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_channel_sums, channel_sums,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("threads"));

// The implementation for a problem (an array of the fields of Problem), written to `name`; returns
// the packed kernel's size in bytes, or -1 where oneDNN has nothing.
extern "C" int64_t cnnjax_onednn_query(const int64_t* fields, int64_t count, char* name,
                                       int64_t length) try {
  Problem problem;
  if (static_cast<size_t>(count) * sizeof(int64_t) != sizeof(problem)) return -1;
  std::memcpy(&problem, fields, sizeof(problem));
  omp_set_num_threads(static_cast<int>(problem.threads));
  const Convolution convolution(problem);
  std::snprintf(name, static_cast<size_t>(length), "%s", convolution.implementation().c_str());
  return static_cast<int64_t>(convolution.packed_bytes());
} catch (const std::exception&) {
  return -1;
}

}  // namespace cnnjax
