// Compiles a function for newer processors as well; which of them is called is settled when the
// library is loaded.
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TFMETA_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define TFMETA_CLONES
#endif
