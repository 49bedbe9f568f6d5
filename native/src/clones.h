// Functions with loops over channels are compiled for these, and chosen when the library is loaded.

#pragma once

#ifdef __SANITIZE_ADDRESS__  // it isn't ready yet when the choice is made
#define CNNJAX_CLONES
#else
#define CNNJAX_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#endif
