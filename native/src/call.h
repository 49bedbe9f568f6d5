// From what XLA hands over to problems and statuses: what all handlers share.

#pragma once

#include <exception>
#include <new>
#include <string>

#include "convolution.h"
#include "xla/ffi/api/ffi.h"

namespace cnnjax {

namespace ffi = xla::ffi;

using Integers = ffi::Span<const int64_t>;

// The attributes of a handler's call; the order is Python's `_attributes`.
struct Window {
  Integers strides, padding, dilation;  // (height, width); (top, bottom, left, right)
  int64_t groups;
};

inline ffi::Error invalid(const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "cnnjax_onednn: " + message);
}

// Fills in a problem, or says what is wrong: wrong sizes here would be memory errors later.
inline ffi::Error describe(Kind kind, Integers x, Integers kernel, Integers y, ffi::DataType type,
                           const Window& window, Problem& p) {
  if (x.size() != 4 || y.size() != 4 || kernel.size() != 4 || window.strides.size() != 2 ||
      window.padding.size() != 4 || window.dilation.size() != 2)
    return invalid("expected images, kernel and outputs of rank 4");
  if (type != ffi::F32 && type != ffi::BF16)
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
  for (int64_t pad : {p.top, p.bottom, p.left, p.right})
    if (pad < 0) return invalid("padding must not be negative");
  if (y[0] != p.n || p.c % p.groups || p.out_c % p.groups || kernel[2] != p.c / p.groups ||
      kernel[3] != p.out_c ||
      p.out_h != extent(p.h, p.top, p.bottom, p.kernel_h, p.dilation_h, p.stride_h) ||
      p.out_w != extent(p.w, p.left, p.right, p.kernel_w, p.dilation_w, p.stride_w))
    return invalid("the shapes of images, kernel and outputs don't fit together");
  return ffi::Error::Success();
}

// Runs `body` with a team of so many threads; what it throws becomes a status.
template <typename Body>
ffi::Error guarded(int64_t threads, ffi::ThreadPool& pool, Body body) {
  if (threads < 1) return invalid("threads must be positive");
  try {
    Team::Schedule schedule;
    if (threads > 1 && pool.num_threads() > 0)
      schedule = [&](Team::Task task) { pool.Schedule(std::move(task)); };
    body(Team(threads, schedule));
    return ffi::Error::Success();
  } catch (const dnnl::error& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("cnnjax_onednn: ") + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "cnnjax_onednn: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("cnnjax_onednn: ") + error.what());
  }
}

}  // namespace cnnjax
