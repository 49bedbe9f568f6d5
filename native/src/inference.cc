// A convolution with what follows it in a network, bias, residual and activation, in one pass over
// its outputs. Kernels are constants then, and packed once, in the order that the primitive wants.

#include <cstring>

#include "call.h"

namespace cnnjax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;

// Problems come as an attribute with the fields of Problem, in their order.
ffi::Error parse(Integers fields, Problem& p) {
  if (fields.size() * sizeof(int64_t) != sizeof(p)) return invalid("problem has another length");
  std::memcpy(&p, fields.begin(), sizeof(p));
  for (int64_t size : {p.n, p.h, p.w, p.c, p.out_h, p.out_w, p.out_c, p.kernel_h, p.kernel_w,
                       p.stride_h, p.stride_w, p.dilation_h, p.dilation_w, p.groups})
    if (size < 1) return invalid("sizes, strides, dilation and groups must be positive");
  if (p.kind != static_cast<int64_t>(Kind::kInference) || p.bfloat16 || !p.bias ||
      p.c % p.groups || p.out_c % p.groups)
    return invalid("not a problem of inference in float32");
  return ffi::Error::Success();
}

bool has(const Floats& buffer, int64_t elements) {
  return static_cast<int64_t>(buffer.element_count()) == elements;
}

ffi::Error inference(Floats images, Floats kernel, Floats bias, ffi::RemainingArgs residual,
                     ffi::Result<Floats> outputs, Integers fields, ffi::ThreadPool pool) {
  Problem p;
  if (auto error = parse(fields, p); error.failure()) return error;
  if (!has(images, p.n * p.h * p.w * p.c) || !has(bias, p.out_c) ||
      !has(*outputs, p.n * p.out_h * p.out_w * p.out_c) ||
      residual.size() != (p.residual ? 1 : 0))
    return invalid("the shapes of images, bias and outputs don't fit the problem");
  Arrays arrays{images.untyped_data(), kernel.untyped_data(), outputs->untyped_data(),
                bias.untyped_data(), nullptr};
  if (p.residual) {
    auto given = residual.get<Floats>(0);
    if (given.has_error()) return given.error();
    if (!has(*given, static_cast<int64_t>(outputs->element_count())))
      return invalid("the residual has another shape than the outputs");
    arrays.residual = given->untyped_data();
  }
  bool fits = true;
  auto error = guarded(p.threads, pool, [&](const Team& team) {
    Convolution& convolution = find(p);
    fits = convolution.packed_bytes() == kernel.size_bytes();
    if (fits) convolution(arrays, scratch(convolution.scratch_bytes()), team);
  });
  return fits ? error : invalid("the kernel isn't packed for this problem");
}

// [kernel_h, kernel_w, c / groups, out_c] to as many bytes as the query said.
ffi::Error pack(Floats kernel, ffi::Result<Floats> packed, Integers fields, ffi::ThreadPool pool) {
  Problem p;
  if (auto error = parse(fields, p); error.failure()) return error;
  if (!has(kernel, p.kernel_h * p.kernel_w * (p.c / p.groups) * p.out_c))
    return invalid("the shape of the kernel doesn't fit the problem");
  bool fits = true;
  auto error = guarded(p.threads, pool, [&](const Team& team) {
    Convolution& convolution = find(p);
    fits = convolution.packed_bytes() == packed->size_bytes();
    if (fits) convolution.pack(kernel.untyped_data(), packed->untyped_data(), team);
  });
  return fits ? error : invalid("the packed kernel has another size");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(cnnjax_onednn_inference, inference,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .RemainingArgs()
                                  .Ret<Floats>()
                                  .Attr<Integers>("problem")
                                  .Ctx<ffi::ThreadPool>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cnnjax_onednn_pack, pack,
    ffi::Ffi::Bind().Arg<Floats>().Ret<Floats>().Attr<Integers>("problem")
        .Ctx<ffi::ThreadPool>());

}  // namespace cnnjax
