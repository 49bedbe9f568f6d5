// What XLA calls, and what Python asks for: see cnnjax_onednn/__init__.py.

#include <cstdio>
#include <cstring>

#include "call.h"
#include "channels.h"
#include "convolution.h"
#include "pooling.h"

namespace cnnjax {
namespace {

bool same_types(const ffi::AnyBuffer& a, const ffi::AnyBuffer& b, const ffi::AnyBuffer& c) {
  return a.element_type() == b.element_type() && a.element_type() == c.element_type();
}

ffi::Error convolve(Kind kind, const ffi::AnyBuffer& images, const ffi::AnyBuffer& kernel,
                    const ffi::AnyBuffer& outputs, const Window& window, int64_t threads,
                    ffi::ThreadPool& pool) {
  Problem problem;
  auto error = describe(kind, images.dimensions(), kernel.dimensions(), outputs.dimensions(),
                        images.element_type(), window, problem);
  if (error.failure()) return error;
  if (!same_types(images, kernel, outputs))
    return invalid("images, kernel and outputs must have one element type");
  problem.threads = threads;
  return guarded(threads, pool, [&](const Team& team) {
    Convolution& convolution = find(problem);
    Arrays arrays{images.untyped_data(), kernel.untyped_data(), outputs.untyped_data(), nullptr,
                  nullptr};
    convolution(arrays, scratch(convolution.scratch_bytes()), team);
  });
}

#define CNNJAX_WINDOW                                                                    \
  Integers strides, Integers padding, Integers dilation, int64_t groups, int64_t threads, \
      ffi::ThreadPool pool

ffi::Error forward(ffi::AnyBuffer images, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> outputs,
                   CNNJAX_WINDOW) {
  return convolve(Kind::kForward, images, kernel, *outputs,
                  {strides, padding, dilation, groups}, threads, pool);
}

ffi::Error input_gradient(ffi::AnyBuffer kernel, ffi::AnyBuffer outputs,
                          ffi::Result<ffi::AnyBuffer> images, CNNJAX_WINDOW) {
  return convolve(Kind::kInputGradient, *images, kernel, outputs,
                  {strides, padding, dilation, groups}, threads, pool);
}

ffi::Error weight_gradient(ffi::AnyBuffer images, ffi::AnyBuffer outputs,
                           ffi::Result<ffi::AnyBuffer> kernel, CNNJAX_WINDOW) {
  return convolve(Kind::kWeightGradient, images, *kernel, outputs,
                  {strides, padding, dilation, groups}, threads, pool);
}

// An array of which every member has its own, [members, ...], or which all share.
struct Operand {
  Integers dims;  // of one member
  std::byte* data;
  size_t step;  // bytes from one member's to the next

  Operand(const ffi::AnyBuffer& buffer, int64_t members) : dims(buffer.dimensions()) {
    bool own = dims.size() == 5 && dims[0] == members;
    data = static_cast<std::byte*>(buffer.untyped_data());
    step = own ? buffer.size_bytes() / static_cast<size_t>(members) : 0;
    if (own) dims = Integers(dims.begin() + 1, 4);
  }

  void* at(int64_t member) const { return data + static_cast<size_t>(member) * step; }
};

// One convolution for each member, whole members in every thread: nothing is waited for on the way.
// Few members share the threads one after the other.
ffi::Error members(ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result,
                   int64_t kind, int64_t members, CNNJAX_WINDOW) {
  if (members < 1 || result->dimensions().size() != 5) return invalid("members are missing");
  Operand a(first, members), b(second, members), c(*result, members);
  Operand *images = &a, *kernel = &b, *outputs = &c;
  switch (static_cast<Kind>(kind)) {
    case Kind::kForward: break;
    case Kind::kInputGradient: kernel = &a, outputs = &b, images = &c; break;
    case Kind::kWeightGradient: images = &a, outputs = &b, kernel = &c; break;
    default: return invalid("no kind of convolution");
  }
  Problem problem;
  auto error = describe(static_cast<Kind>(kind), images->dims, kernel->dims, outputs->dims,
                        first.element_type(), {strides, padding, dilation, groups}, problem);
  if (error.failure()) return error;
  if (!same_types(first, second, *result))
    return invalid("images, kernel and outputs must have one element type");
  auto one = [&](int64_t member, const Team& team) {
    Convolution& convolution = find(problem);
    Arrays arrays{images->at(member), kernel->at(member), outputs->at(member), nullptr, nullptr};
    convolution(arrays, scratch(convolution.scratch_bytes()), team);
  };
  return guarded(threads, pool, [&](const Team& team) {
    problem.threads = members < 2 * threads ? threads : 1;
    if (problem.threads == threads) {
      for (int64_t member = 0; member < members; ++member) one(member, team);
    } else {
      team.run(members, [&](int64_t member, int64_t) { one(member, Team(1, {})); });
    }
  });
}

#undef CNNJAX_WINDOW

// The rows of an array [..., channels] in float32; the channels are the last dimension.
int64_t rows(const ffi::Buffer<ffi::F32>& x) {
  return static_cast<int64_t>(x.element_count()) / x.dimensions().back();
}

using Floats = ffi::Buffer<ffi::F32>;

ffi::Error channel_moments(Floats x, ffi::Result<Floats> mean, ffi::Result<Floats> variance,
                           int64_t threads, ffi::ThreadPool pool) {
  if (x.dimensions().size() == 0 || x.element_count() == 0) return invalid("no values to average");
  int64_t channels = x.dimensions().back();
  for (const Floats& result : {*mean, *variance})
    if (static_cast<int64_t>(result.element_count()) != channels)
      return invalid("mean and variance are [channels]");
  return guarded(threads, pool, [&](const Team& team) {
    moments(x.typed_data(), rows(x), channels, team, mean->typed_data(), variance->typed_data());
  });
}

ffi::Error channel_sums(Floats v, Floats x, Floats mean, ffi::Result<Floats> values,
                        ffi::Result<Floats> products, int64_t threads, ffi::ThreadPool pool) {
  if (x.dimensions().size() == 0 || x.element_count() == 0) return invalid("no values to add");
  int64_t channels = x.dimensions().back();
  if (v.element_count() != x.element_count() || v.dimensions().back() != channels)
    return invalid("values and images have different shapes");
  for (const Floats& vector : {mean, *values, *products})
    if (static_cast<int64_t>(vector.element_count()) != channels)
      return invalid("mean and sums are [channels]");
  return guarded(threads, pool, [&](const Team& team) {
    sums(v.typed_data(), x.typed_data(), mean.typed_data(), rows(x), channels, team,
         values->typed_data(), products->typed_data());
  });
}

// The geometry of a pooling; padding holds (top, left), the rest follows from the shapes.
ffi::Error describe(const Floats& x, const Floats& y, Integers window, Integers strides,
                    Integers padding, Pool& pool) {
  auto in = x.dimensions(), out = y.dimensions();
  if (in.size() != 4 || out.size() != 4 || window.size() != 2 || strides.size() != 2 ||
      padding.size() != 2 || in[0] != out[0] || in[3] != out[3])
    return invalid("expected images of rank 4, as many after pooling as before");
  pool = {in[0],     in[1],     in[2],      in[3],      out[1],     out[2],
          window[0], window[1], strides[0], strides[1], padding[0], padding[1]};
  for (int axis = 0; axis < 2; ++axis) {
    int64_t last = (out[axis + 1] - 1) * strides[axis] - padding[axis];  // window's first pixel
    if (strides[axis] < 1 || padding[axis] < 0 || padding[axis] >= window[axis] || last >= in[axis + 1])
      return invalid("a pooling window lies outside of its image");
  }
  return ffi::Error::Success();
}

ffi::Error pooling(Floats x, ffi::Result<Floats> y, Integers window, Integers strides,
                   Integers padding, int64_t threads, ffi::ThreadPool pool) {
  Pool geometry;
  auto error = describe(x, *y, window, strides, padding, geometry);
  if (error.failure()) return error;
  return guarded(threads, pool, [&](const Team& team) {
    max_pool(geometry, x.typed_data(), team, y->typed_data());
  });
}

ffi::Error pooling_gradient(Floats dy, Floats x, ffi::Result<Floats> dx, Integers window,
                            Integers strides, Integers padding, int64_t threads,
                            ffi::ThreadPool pool) {
  Pool geometry;
  auto error = describe(x, dy, window, strides, padding, geometry);
  if (error.failure()) return error;
  if (dx->element_count() != x.element_count()) return invalid("a gradient is as its images");
  return guarded(threads, pool, [&](const Team& team) {
    max_pool_gradient(geometry, x.typed_data(), dy.typed_data(), team,
                      dx->typed_data());
  });
}

#define CNNJAX_ATTRIBUTES               \
  .Attr<Integers>("strides")            \
      .Attr<Integers>("padding")        \
      .Attr<Integers>("dilation")       \
      .Attr<int64_t>("groups")          \
      .Attr<int64_t>("threads")         \
      .Ctx<ffi::ThreadPool>()

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_members, members,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("kind")
                                  .Attr<int64_t>("members")
                                  CNNJAX_ATTRIBUTES);

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cnnjax_onednn_channel_moments, channel_moments,
    ffi::Ffi::Bind().Arg<Floats>().Ret<Floats>().Ret<Floats>().Attr<int64_t>("threads")
        .Ctx<ffi::ThreadPool>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_channel_sums, channel_sums,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("threads")
                                  .Ctx<ffi::ThreadPool>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_max_pool, pooling,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<Integers>("window")
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("padding")
                                  .Attr<int64_t>("threads")
                                  .Ctx<ffi::ThreadPool>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_max_pool_gradient, pooling_gradient,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<Integers>("window")
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("padding")
                                  .Attr<int64_t>("threads")
                                  .Ctx<ffi::ThreadPool>());

// The implementation for a problem (an array of the fields of Problem), written to `name`; returns
// the packed kernel's size in bytes, or -1 where oneDNN has nothing.
extern "C" int64_t cnnjax_onednn_query(const int64_t* fields, int64_t count, char* name,
                                       int64_t length) try {
  Problem problem;
  if (static_cast<size_t>(count) * sizeof(int64_t) != sizeof(problem)) return -1;
  std::memcpy(&problem, fields, sizeof(problem));
  auto convolution = make(problem);
  std::snprintf(name, static_cast<size_t>(length), "%s", convolution->implementation().c_str());
  return static_cast<int64_t>(convolution->packed_bytes());
} catch (const std::exception&) {
  return -1;
}

}  // namespace cnnjax
