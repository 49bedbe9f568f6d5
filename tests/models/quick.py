"""Options for `jax.jit` of what is run once: what XLA would gain, it takes longer to find."""

import jax

UNOPTIMISED: dict[str, bool | int] = {'xla_backend_optimization_level': 0}
if jax.__version_info__ < (0, 11):  # newer ones don't have the choice
  UNOPTIMISED['xla_cpu_use_fusion_emitters'] = False

# A training step in float64 is too slow entirely without optimisation.
HARDLY_OPTIMISED = UNOPTIMISED | {
  'xla_backend_optimization_level': 1,
  'xla_llvm_disable_expensive_passes': True,
}
