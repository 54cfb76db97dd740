// Which kernels this processor runs. Only builtin checks here: this file runs everywhere.
#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace strata {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#if defined(STRATA_AVX512)
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
}
#endif
#elif defined(__aarch64__)
// The dot-product extension; every Apple processor has it.
bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;
#endif
}
#endif

}  // namespace

#if !defined(__x86_64__)
const KernelTable* kernels_avx2() { return nullptr; }
#endif
#if !defined(STRATA_AVX512)
const KernelTable* kernels_avx512() { return nullptr; }
#endif
#if !defined(__aarch64__)
const KernelTable* kernels_neon() { return nullptr; }
#endif

const KernelTable* select_kernels(const char* name) {
  const KernelTable* best_first[3] = {nullptr, nullptr, nullptr};
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(STRATA_AVX512)
  if (has_avx512()) best_first[count++] = kernels_avx512();
#endif
  if (has_avx2()) best_first[count++] = kernels_avx2();
#elif defined(__aarch64__)
  if (has_dotprod()) best_first[count++] = kernels_neon();
#endif
  best_first[count++] = kernels_scalar();
  if (name == nullptr || *name == '\0') return best_first[0];
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(best_first[i]->name, name) == 0) return best_first[i];
  }
  return nullptr;
}

const KernelTable& usual_kernels() {
  static const KernelTable* const table = [] {
    const KernelTable* named = select_kernels(std::getenv("STRATA_ISA"));
    return named != nullptr ? named : select_kernels(nullptr);
  }();
  return *table;
}

}  // namespace strata
