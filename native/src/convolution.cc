#include "convolution.h"

#include <algorithm>
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

// A oneDNN primitive of one thread, for a part of the images, which the team's threads run side by
// side; sums of a kernel's gradient are added in the parts' order. Where the images can't be divided
// it has all of them, and its threads are OpenMP's.
class Primitive : public Convolution {
 public:
  explicit Primitive(const Problem& problem);
  void operator()(const Arrays& arrays, std::byte* scratch, const Team& team) override;
  void pack(const void* kernel, void* packed, const Team& team) override;
  size_t scratch_bytes() const override {
    return copies() * kernel_bytes_ + workers() * primitive_bytes_;
  }
  size_t packed_bytes() const override { return ours_.get_size(); }
  std::string implementation() const override { return implementation_; }

 private:
  bool gradient() const { return kind_ == Kind::kWeightGradient; }
  bool own_kernel() const {
    return gradient() ? reordered_ || parts_ > 1 : reordered_ && kind_ != Kind::kInference;
  }
  size_t copies() const { return !own_kernel() ? 0 : static_cast<size_t>(gradient() ? parts_ : 1); }
  size_t workers() const { return static_cast<size_t>(std::min(parts_, threads_)); }
  void part(const Arrays& arrays, int64_t i, std::byte* kernel, std::byte* scratch) const;
  void add(std::byte* kernels, const Team& team) const;
  void reorder(void* from, void* to) const;

  memory::desc theirs_, ours_;  // the kernel's layout outside, and in the primitive
  memory::desc images_, outputs_, bias_, scratchpad_;
  bool reordered_;
  size_t kernel_bytes_ = 0, primitive_bytes_ = 0;
  std::string implementation_;
  Kind kind_;
  bool residual_;
  int64_t threads_, parts_;
  dnnl::primitive primitive_;
  dnnl::reorder reorder_;
};

// The fewest parts of equal size that occupy all threads; 1 where there are none, or where their sums
// would be rounded.
int64_t parts(const Problem& p) {
  bool rounds = p.bfloat16 && static_cast<Kind>(p.kind) == Kind::kWeightGradient;
  if (p.threads > 1 && !rounds)
    for (int64_t parts = p.threads; parts <= std::min(p.n, 4 * p.threads); ++parts)
      if (p.n % parts == 0) return parts;
  return 1;
}

Primitive::Primitive(const Problem& p)
    : kind_(static_cast<Kind>(p.kind)),
      residual_(p.residual != 0),
      threads_(p.threads),
      parts_(parts(p)) {
  OpenMP wide(parts_ > 1 ? 1 : threads_);
  using tag = memory::format_tag;
  auto type = p.bfloat16 ? memory::data_type::bf16 : memory::data_type::f32;
  memory::desc images({p.n / parts_, p.c, p.h, p.w}, type, tag::nhwc);
  memory::desc outputs({p.n / parts_, p.out_c, p.out_h, p.out_w}, type, tag::nhwc);
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
  images_ = images, outputs_ = outputs, bias_ = bias, scratchpad_ = scratchpad;
  auto round = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  kernel_bytes_ = round(ours_.get_size());
  primitive_bytes_ = round(scratchpad.get_size());
  if (!reordered_) return;
  memory packed(ours_, engine(), nullptr), given(theirs_, engine(), nullptr);
  reorder_ = gradient() ? dnnl::reorder(packed, given) : dnnl::reorder(given, packed);
}

void Primitive::operator()(const Arrays& arrays, std::byte* scratch, const Team& team) {
  std::byte* kernels = scratch;
  scratch += copies() * kernel_bytes_;
  auto* given = static_cast<std::byte*>(arrays.kernel);
  if (own_kernel() && !gradient()) reorder(given, kernels);
  if (!own_kernel()) kernels = given;
  if (parts_ == 1) {
    OpenMP wide(threads_);
    part(arrays, 0, kernels, scratch);
  } else {
    team.run(parts_, [&](int64_t i, int64_t worker) {
      part(arrays, i, kernels + (gradient() ? static_cast<size_t>(i) * kernel_bytes_ : 0),
           scratch + static_cast<size_t>(worker) * primitive_bytes_);
    });
    if (gradient()) add(kernels, team);
  }
  if (!own_kernel() || !gradient()) return;
  if (reordered_)
    reorder(kernels, given);
  else
    std::memcpy(given, kernels, ours_.get_size());
}

// One part of the images.
void Primitive::part(const Arrays& arrays, int64_t i, std::byte* kernel, std::byte* scratch) const {
  auto at = [&](void* array, const memory::desc& desc) {
    return static_cast<std::byte*>(array) + static_cast<size_t>(i) * desc.get_size();
  };
  std::byte *images = at(arrays.images, images_), *outputs = at(arrays.outputs, outputs_);
  if (residual_ && arrays.residual != arrays.outputs)
    std::memcpy(outputs, at(arrays.residual, outputs_), outputs_.get_size());
  auto memory_of = [](const memory::desc& desc, void* data) { return memory(desc, engine(), data); };
  memory x = memory_of(images_, images), y = memory_of(outputs_, outputs),
         w = memory_of(ours_, kernel);
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SCRATCHPAD, memory_of(scratchpad_, scratch)}};
  switch (kind_) {
    case Kind::kForward:
    case Kind::kInference:
      arguments.insert({{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
      if (arrays.bias) arguments.emplace(DNNL_ARG_BIAS, memory_of(bias_, arrays.bias));
      break;
    case Kind::kInputGradient:
      arguments.insert({{DNNL_ARG_DIFF_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DIFF_DST, y}});
      break;
    case Kind::kWeightGradient:
      arguments.insert({{DNNL_ARG_SRC, x}, {DNNL_ARG_DIFF_WEIGHTS, w}, {DNNL_ARG_DIFF_DST, y}});
      break;
  }
  primitive_.execute(stream(), arguments);
  stream().wait();
}

// Adds the parts' kernels to the first.
void Primitive::add(std::byte* kernels, const Team& team) const {
  auto count = static_cast<int64_t>(kernel_bytes_ / sizeof(float));
  auto* total = reinterpret_cast<float*>(kernels);
  team.share(count, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t part = 1; part < parts_; ++part)
      for (int64_t i = first; i < last; ++i) total[i] += total[part * count + i];
  });
}

void Primitive::reorder(void* from, void* to) const {
  OpenMP wide(ours_.get_size() < kLargeKernel ? 1 : threads_);
  memory packed(ours_, engine(), gradient() ? from : to),
      given(theirs_, engine(), gradient() ? to : from);
  reorder_.execute(stream(), gradient() ? packed : given, gradient() ? given : packed);
  stream().wait();
}

void Primitive::pack(const void* kernel, void* packed, const Team&) {
  if (reordered_)
    reorder(const_cast<void*>(kernel), packed);
  else
    std::memcpy(packed, kernel, ours_.get_size());
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
