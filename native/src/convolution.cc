#include "convolution.h"

#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

#include "depthwise.h"
#include "narrow.h"
#include "pointwise.h"
#include "product.h"
#include "winograd.h"

namespace cnnjax {
namespace {

using dnnl::memory;
using Dims = memory::dims;

// Caches and scratch memory belong to threads, so that nothing on the way to a primitive takes a
// lock. Each holds this many primitives, and gives scratch beyond this size back after the call.
constexpr size_t kPrimitives = 256;
constexpr size_t kKeptScratch = size_t{256} << 20;

// Kernels of fewer bytes are reordered by one thread: in 3 us one of LeNet-5's, for which another
// thread had to be woken in 60 to 110 us.
constexpr size_t kLargeKernel = size_t{1} << 20;

dnnl::engine& engine() {
  // Not destroyed: threads may still run when the process ends.
  static auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// What one thread at a time works with.
struct Workspace {
  using Order = std::list<std::pair<Problem, std::unique_ptr<Convolution>>>;

  dnnl::stream stream{engine()};
  Order order;  // primitives, the one used last first
  std::unordered_map<Problem, Order::iterator, ProblemHash> places;
  std::byte* memory = nullptr;
  size_t size = 0;
};

// Workspaces outlive their threads and go to the next that starts: they are as many as threads ever
// ran at a time, and nothing of oneDNN is destroyed while the process ends.
struct Idle {
  std::mutex mutex;
  std::vector<Workspace*> workspaces;
};

Idle& idle() {
  static auto* idle = new Idle;
  return *idle;
}

Workspace& workspace() {
  struct Lease {
    Workspace* mine = nullptr;
    Lease() {
      std::lock_guard lock(idle().mutex);
      if (idle().workspaces.empty()) {
        mine = new Workspace;
      } else {
        mine = idle().workspaces.back();
        idle().workspaces.pop_back();
      }
    }
    ~Lease() {
      std::lock_guard lock(idle().mutex);
      idle().workspaces.push_back(mine);
    }
  };
  thread_local Lease lease;
  return *lease.mine;
}

dnnl::stream& stream() { return workspace().stream; }

// [kernel_h, kernel_w, c / groups, out_c] seen as oneDNN's (groups,) out, in, height, width.
memory::desc kernel_desc(const Problem& p, memory::data_type type) {
  int64_t in = p.c / p.groups, out = p.out_c / p.groups, column = in * p.out_c;
  if (p.groups == 1)
    return {{out, in, p.kernel_h, p.kernel_w}, type, Dims{1, p.out_c, p.kernel_w * column, column}};
  return {{p.groups, out, in, p.kernel_h, p.kernel_w},
          type,
          Dims{out, 1, p.out_c, p.kernel_w * column, column}};
}

memory::desc any_kernel_desc(const Problem& p, memory::data_type type) {
  int64_t in = p.c / p.groups, out = p.out_c / p.groups;
  using tag = memory::format_tag;
  if (p.groups == 1) return {{out, in, p.kernel_h, p.kernel_w}, type, tag::any};
  return {{p.groups, out, in, p.kernel_h, p.kernel_w}, type, tag::any};
}

dnnl::primitive_attr attributes(const Problem& p) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops ops;
  if (p.residual) ops.append_sum(1.0f);
  using dnnl::algorithm;
  switch (static_cast<Activation>(p.activation)) {
    case Activation::kNone: break;
    case Activation::kRelu: ops.append_eltwise(algorithm::eltwise_relu, 0.0f, 0.0f); break;
    case Activation::kRelu6: ops.append_eltwise(algorithm::eltwise_clip, 0.0f, 6.0f); break;
    case Activation::kSwish: ops.append_eltwise(algorithm::eltwise_swish, 1.0f, 0.0f); break;
    case Activation::kHardSwish:
      ops.append_eltwise(algorithm::eltwise_hardswish, 1.0f / 6.0f, 0.5f);
      break;
    case Activation::kGelu: ops.append_eltwise(algorithm::eltwise_gelu_erf, 0.0f, 0.0f); break;
    case Activation::kTanh: ops.append_eltwise(algorithm::eltwise_tanh, 0.0f, 0.0f); break;
    case Activation::kLogistic: ops.append_eltwise(algorithm::eltwise_logistic, 0.0f, 0.0f); break;
  }
  attr.set_post_ops(ops);
  return attr;
}

// Moves on from oneDNN's first choice where another implementation was measured to be faster: for
// depthwise convolutions of large images, and 1 x 1 ones of few channels that add to a residual.
void prefer(const Problem& p, dnnl::convolution_forward::primitive_desc& described) {
  auto named = [&](const std::string& name) {
    return std::string(described.impl_info_str()).starts_with(name);
  };
  const char* other = nullptr;
  if (named("brdgmm_dw:") && p.out_w >= 14) other = "jit_dw:";
  if (named("brgconv_1x1:") && p.residual && p.c <= 128 && p.out_w >= 28) other = "jit:";
  if (!other) return;
  auto first = described;
  while (described.next_impl())
    if (named(other)) return;
  described = first;
}

// A oneDNN primitive with its memory.
class Primitive : public Convolution {
 public:
  explicit Primitive(const Problem& problem);
  void operator()(const Arrays& arrays, std::byte* scratch) override;
  void pack(const void* kernel, void* packed) override;
  size_t scratch_bytes() const override { return kernel_bytes_ + primitive_bytes_; }
  size_t packed_bytes() const override { return ours_.get_size(); }
  std::string implementation() const override { return implementation_; }

 private:
  memory::desc theirs_, ours_;  // the kernel's layout outside, and in the primitive
  bool reordered_;
  size_t kernel_bytes_ = 0, primitive_bytes_ = 0;
  std::string implementation_;
  Kind kind_;
  bool residual_;
  int threads_;
  dnnl::primitive primitive_;
  dnnl::reorder reorder_;
  memory images_, kernel_, given_, outputs_, bias_, scratchpad_;

  void reorder(memory& from, memory& to) {
    bool small = ours_.get_size() < kLargeKernel;
    if (small) omp_set_num_threads(1);
    reorder_.execute(stream(), from, to);
    if (small) omp_set_num_threads(threads_);
  }
};

Primitive::Primitive(const Problem& p)
    : kind_(static_cast<Kind>(p.kind)),
      residual_(p.residual != 0),
      threads_(static_cast<int>(p.threads)) {
  using tag = memory::format_tag;
  auto type = p.bfloat16 ? memory::data_type::bf16 : memory::data_type::f32;
  memory::desc images({p.n, p.c, p.h, p.w}, type, tag::nhwc);
  memory::desc outputs({p.n, p.out_c, p.out_h, p.out_w}, type, tag::nhwc);
  memory::desc kernel = any_kernel_desc(p, type), bias;
  theirs_ = kernel_desc(p, type);
  Dims strides{p.stride_h, p.stride_w}, dilation{p.dilation_h - 1, p.dilation_w - 1};
  Dims before{p.top, p.left}, after{p.bottom, p.right};
  auto attr = attributes(p);
  auto algorithm = dnnl::algorithm::convolution_direct;
  memory::desc scratchpad;
  auto take = [&](const auto& described, const memory::desc& chosen, auto primitive) {
    ours_ = chosen;
    scratchpad = described.scratchpad_desc();
    implementation_ = described.impl_info_str();
    primitive_ = std::move(primitive);
  };
  if (kind_ == Kind::kForward || kind_ == Kind::kInference) {
    auto purpose = kind_ == Kind::kForward ? dnnl::prop_kind::forward_training
                                           : dnnl::prop_kind::forward_inference;
    if (p.bias) bias = memory::desc({p.out_c}, memory::data_type::f32, tag::x);
    dnnl::convolution_forward::primitive_desc described(engine(), purpose, algorithm, images, kernel,
                                                        bias, outputs, strides, dilation, before,
                                                        after, attr);
    if (kind_ == Kind::kInference) prefer(p, described);
    take(described, described.weights_desc(), dnnl::convolution_forward(described));
  } else {
    // oneDNN wants the forward primitive as a hint of what the gradient belongs to.
    dnnl::convolution_forward::primitive_desc forward(
        engine(), dnnl::prop_kind::forward_training, algorithm, images, kernel, outputs, strides,
        dilation, before, after);
    if (kind_ == Kind::kInputGradient) {
      dnnl::convolution_backward_data::primitive_desc described(
          engine(), algorithm, images, kernel, outputs, strides, dilation, before, after, forward,
          attr);
      take(described, described.weights_desc(), dnnl::convolution_backward_data(described));
    } else {
      dnnl::convolution_backward_weights::primitive_desc described(
          engine(), algorithm, images, kernel, outputs, strides, dilation, before, after, forward,
          attr);
      take(described, described.diff_weights_desc(), dnnl::convolution_backward_weights(described));
    }
  }
  reordered_ = ours_ != theirs_;
  auto round = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  if (reordered_ && kind_ != Kind::kInference) kernel_bytes_ = round(ours_.get_size());
  primitive_bytes_ = round(scratchpad.get_size());

  auto empty = [](const memory::desc& desc) { return memory(desc, engine(), nullptr); };
  images_ = empty(images);
  outputs_ = empty(outputs);
  kernel_ = empty(ours_);
  given_ = empty(theirs_);
  if (p.bias) bias_ = empty(bias);
  scratchpad_ = empty(scratchpad);
  if (reordered_)
    reorder_ = kind_ == Kind::kWeightGradient ? dnnl::reorder(kernel_, given_)
                                              : dnnl::reorder(given_, kernel_);
}

void Primitive::operator()(const Arrays& arrays, std::byte* scratch) {
  images_.set_data_handle(arrays.images);
  outputs_.set_data_handle(arrays.outputs);
  scratchpad_.set_data_handle(scratch + kernel_bytes_);
  given_.set_data_handle(arrays.kernel);
  bool packed = reordered_ && kind_ != Kind::kInference;
  kernel_.set_data_handle(packed ? static_cast<void*>(scratch) : arrays.kernel);
  if (residual_ && arrays.residual != arrays.outputs)
    std::memcpy(arrays.outputs, arrays.residual, outputs_.get_desc().get_size());
  switch (kind_) {
    case Kind::kForward:
    case Kind::kInference: {
      if (packed) reorder(given_, kernel_);
      std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, images_},
                                                {DNNL_ARG_WEIGHTS, kernel_},
                                                {DNNL_ARG_DST, outputs_},
                                                {DNNL_ARG_SCRATCHPAD, scratchpad_}};
      if (bias_) {
        bias_.set_data_handle(arrays.bias);
        arguments.emplace(DNNL_ARG_BIAS, bias_);
      }
      primitive_.execute(stream(), arguments);
      break;
    }
    case Kind::kInputGradient:
      if (packed) reorder(given_, kernel_);
      primitive_.execute(stream(), {{DNNL_ARG_DIFF_SRC, images_},
                                    {DNNL_ARG_WEIGHTS, kernel_},
                                    {DNNL_ARG_DIFF_DST, outputs_},
                                    {DNNL_ARG_SCRATCHPAD, scratchpad_}});
      break;
    case Kind::kWeightGradient:
      primitive_.execute(stream(), {{DNNL_ARG_SRC, images_},
                                    {DNNL_ARG_DIFF_WEIGHTS, kernel_},
                                    {DNNL_ARG_DIFF_DST, outputs_},
                                    {DNNL_ARG_SCRATCHPAD, scratchpad_}});
      if (packed) reorder(kernel_, given_);
      break;
  }
  stream().wait();
}

void Primitive::pack(const void* kernel, void* packed) {
  if (!reordered_) {
    std::memcpy(packed, kernel, ours_.get_size());
    return;
  }
  given_.set_data_handle(const_cast<void*>(kernel));
  kernel_.set_data_handle(packed);
  reorder(given_, kernel_);
  stream().wait();
}

}  // namespace

size_t ProblemHash::operator()(const Problem& problem) const {
  std::array<int64_t, sizeof(Problem) / sizeof(int64_t)> values;
  std::memcpy(values.data(), &problem, sizeof(Problem));
  size_t hash = 14695981039346656037u;  // FNV-1a, over words
  for (int64_t value : values) hash = (hash ^ static_cast<size_t>(value)) * 1099511628211u;
  return hash ^ (hash >> 32);
}

std::unique_ptr<Convolution> make(const Problem& p) {
  if (auto ours = winograd(p)) return ours;
  if (auto ours = pointwise_gradient(p)) return ours;
  if (auto ours = narrow_gradient(p)) return ours;
  if (auto ours = depthwise_gradient(p)) return ours;
  if (auto ours = product(p)) return ours;
  return std::make_unique<Primitive>(p);
}

Convolution& find(const Problem& problem) {
  auto& [stream, order, places, memory, size] = workspace();
  if (auto place = places.find(problem); place != places.end()) {
    order.splice(order.begin(), order, place->second);
  } else {
    auto made = make(problem);
    if (order.size() >= kPrimitives) {
      places.erase(order.back().first);
      order.pop_back();
    }
    order.emplace_front(problem, std::move(made));
    places.emplace(problem, order.begin());
  }
  return *order.front().second;
}

std::byte* scratch(size_t bytes) {
  auto& [stream, order, places, memory, size] = workspace();
  if (bytes > size || size > kKeptScratch) {
    std::free(memory);
    memory = nullptr;
    size = 0;
    void* fresh = nullptr;
    if (posix_memalign(&fresh, 64, bytes ? bytes : 64)) throw std::bad_alloc();
    memory = static_cast<std::byte*>(fresh);
    size = bytes;
  }
  return memory;
}

}  // namespace cnnjax
