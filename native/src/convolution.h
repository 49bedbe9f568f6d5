// One convolution, its gradients, or its inference form, as a oneDNN primitive with its memory.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "team.h"

namespace cnnjax {

enum class Kind : int64_t { kForward, kInputGradient, kWeightGradient, kInference };
enum class Activation : int64_t { kNone, kRelu, kRelu6, kSwish, kHardSwish, kGelu, kTanh, kLogistic };

// What a primitive is made for: two equal ones may share it. All sizes are in elements.
// Images are [n, h, w, c] and [n, out_h, out_w, out_c], kernels [kernel_h, kernel_w, c / groups,
// out_c], all dense and row-major.
struct Problem {
  int64_t kind, n, h, w, c, out_h, out_w, out_c, kernel_h, kernel_w, stride_h, stride_w, top, bottom,
      left, right, dilation_h, dilation_w, groups, bfloat16, bias, activation, residual, threads;

  bool operator==(const Problem&) const = default;
};

struct ProblemHash {
  size_t operator()(const Problem& problem) const;
};

// The arrays of one call. A gradient's result stands where the forward call has its argument.
struct Arrays {
  void* images;    // [n, h, w, c]
  void* kernel;    // as above; kInference: as `pack` made it
  void* outputs;   // [n, out_h, out_w, out_c]
  void* bias;      // [out_c], kInference alone
  void* residual;  // as outputs, added before the activation; kInference alone
};

// A problem's implementation, for one call at a time.
class Convolution {
 public:
  virtual ~Convolution() = default;

  // Runs it, for a team of the problem's threads. `scratch` has `scratch_bytes()` and is aligned to
  // 64.
  virtual void operator()(const Arrays& arrays, std::byte* scratch, const Team& team) = 0;

  // Orders a kernel as kInference wants it; `packed` has `packed_bytes()`.
  virtual void pack(const void* kernel, void* packed, const Team& team) = 0;

  virtual size_t scratch_bytes() const = 0;
  virtual size_t packed_bytes() const = 0;

  // Its name; "ref" in it means naive loops.
  virtual std::string implementation() const = 0;
};

// The fastest implementation for a problem. Throws dnnl::error where there is none.
std::unique_ptr<Convolution> make(const Problem& problem);

// The calling thread's primitive for a problem, made on first use. Valid until the next call.
Convolution& find(const Problem& problem);

// The calling thread's scratch memory, aligned to 64, valid until the next call.
std::byte* scratch(size_t bytes);

}  // namespace cnnjax
