// One convolution, its gradients, or its inference form, as a oneDNN primitive with its memory.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

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

class Convolution {
 public:
  // Throws dnnl::error where oneDNN has nothing for the problem.
  explicit Convolution(const Problem& problem);

  // Runs it. `scratch` has `scratch_bytes()` and is aligned to 64.
  void operator()(const Arrays& arrays, std::byte* scratch);

  // Orders a kernel as kInference wants it; `packed` has `packed_bytes()`.
  void pack(const void* kernel, void* packed);

  size_t scratch_bytes() const { return kernel_bytes_ + primitive_bytes_; }
  size_t packed_bytes() const { return ours_.get_size(); }

  // oneDNN's name of the implementation; "ref" in it means naive loops.
  const std::string& implementation() const { return implementation_; }

 private:
  dnnl::memory::desc theirs_, ours_;  // the kernel's layout outside, and in the primitive
  bool reordered_;
  size_t kernel_bytes_ = 0, primitive_bytes_ = 0;
  std::string implementation_;
  Kind kind_;
  bool residual_;
  dnnl::primitive primitive_;
  dnnl::reorder reorder_;
  dnnl::memory images_, kernel_, given_, outputs_, bias_, scratchpad_;
};

// The calling thread's primitive for a problem, made on first use. Valid until the next call.
Convolution& find(const Problem& problem);

// The calling thread's scratch memory, aligned to 64, valid until the next call.
std::byte* scratch(size_t bytes);

}  // namespace cnnjax
