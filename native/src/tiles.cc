#include "tiles.h"

#include "oneapi/dnnl/dnnl.hpp"

namespace cnnjax {

extern const Tiles kTilesAvx2, kTilesAvx512;

const Tiles* tiles() {
  auto has = [isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa())](dnnl::cpu_isa wanted) {
    return (isa & static_cast<unsigned>(wanted)) == static_cast<unsigned>(wanted);
  };
  if (has(dnnl::cpu_isa::avx512_core)) return &kTilesAvx512;
  if (has(dnnl::cpu_isa::avx2)) return &kTilesAvx2;
  return nullptr;
}

}  // namespace cnnjax
