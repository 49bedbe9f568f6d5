// Functions with loops over channels are compiled for these, and chosen when the library is loaded.

#pragma once

#define CNNJAX_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
