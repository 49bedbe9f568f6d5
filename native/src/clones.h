// Functions with loops over channels are compiled for these, and chosen when the library is loaded.
// By features: a processor's name, as in "arch=haswell", means that one maker's.

#pragma once

#ifdef __SANITIZE_ADDRESS__  // it isn't ready yet when the choice is made
#define CNNJAX_CLONES
#else
#define CNNJAX_CLONES \
  __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
