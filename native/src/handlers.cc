// What XLA calls, and what Python asks for: see cnnjax_onednn/__init__.py.

#include <omp.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "channels.h"
#include "convolution.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace cnnjax {
namespace {

using Integers = ffi::Span<const int64_t>;

// The attributes of a handler's call; the order is Python's `_attributes`.
struct Window {
  Integers strides, padding, dilation;  // (height, width); (top, bottom, left, right)
  int64_t groups;
};

ffi::Error invalid(const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "cnnjax_onednn: " + message);
}

// Fills in a problem, or says what is wrong: wrong sizes here would be memory errors later.
ffi::Error describe(Kind kind, const ffi::AnyBuffer& images, Integers kernel,
                    const ffi::AnyBuffer& outputs, const Window& window, Problem& p) {
  auto x = images.dimensions(), y = outputs.dimensions();
  if (x.size() != 4 || y.size() != 4 || kernel.size() != 4 || window.strides.size() != 2 ||
      window.padding.size() != 4 || window.dilation.size() != 2)
    return invalid("expected images, kernel and outputs of rank 4");
  auto type = images.element_type();
  if ((type != ffi::F32 && type != ffi::BF16) || outputs.element_type() != type)
    return invalid("element types must be float32 or bfloat16, and equal");
  p = Problem{};
  p.kind = static_cast<int64_t>(kind);
  p.n = x[0], p.h = x[1], p.w = x[2], p.c = x[3];
  p.out_h = y[1], p.out_w = y[2], p.out_c = y[3];
  p.kernel_h = kernel[0], p.kernel_w = kernel[1];
  p.stride_h = window.strides[0], p.stride_w = window.strides[1];
  p.top = window.padding[0], p.bottom = window.padding[1];
  p.left = window.padding[2], p.right = window.padding[3];
  p.dilation_h = window.dilation[0], p.dilation_w = window.dilation[1];
  p.groups = window.groups;
  p.bfloat16 = type == ffi::BF16;
  auto extent = [](int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation,
                   int64_t stride) {
    return (size + before + after - (kernel - 1) * dilation - 1) / stride + 1;
  };
  for (int64_t size : {p.n, p.h, p.w, p.c, p.out_h, p.out_w, p.out_c, p.kernel_h, p.kernel_w,
                       p.stride_h, p.stride_w, p.dilation_h, p.dilation_w, p.groups})
    if (size < 1) return invalid("sizes, strides, dilation and groups must be positive");
  if (y[0] != p.n || p.c % p.groups || p.out_c % p.groups || kernel[2] != p.c / p.groups ||
      kernel[3] != p.out_c ||
      p.out_h != extent(p.h, p.top, p.bottom, p.kernel_h, p.dilation_h, p.stride_h) ||
      p.out_w != extent(p.w, p.left, p.right, p.kernel_w, p.dilation_w, p.stride_w))
    return invalid("the shapes of images, kernel and outputs don't fit together");
  return ffi::Error::Success();
}

// Runs `body` with this thread's parallel regions `threads` wide; what it throws becomes a status.
template <typename Body>
ffi::Error guarded(int64_t threads, Body body) {
  if (threads < 1) return invalid("threads must be positive");
  try {
    omp_set_num_threads(static_cast<int>(threads));
    body();
    return ffi::Error::Success();
  } catch (const dnnl::error& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("cnnjax_onednn: ") + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "cnnjax_onednn: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("cnnjax_onednn: ") + error.what());
  }
}

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
