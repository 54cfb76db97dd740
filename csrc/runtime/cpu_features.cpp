// Which kernels this processor runs. It is compiled for no instruction set: this file runs everywhere.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace strata {
namespace {

#if defined(__x86_64__)
// The processor is asked itself: what compilers bring along for this finds nothing where zig links
// for musl. Bits are those of CPUID in Intel's manual (volume 2A), state those of XCR0 (volume 1).
struct X86 {
  unsigned c1 = 0, b7 = 0, c7 = 0, a71 = 0;
  unsigned state = 0;

  X86() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) c1 = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
      b7 = b;
      c7 = c;
      if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) a71 = a;
    }
    // What registers the system saves; without OSXSAVE it may not be asked.
    if (c1 >> 27 & 1) __asm__("xgetbv" : "=a"(state), "=d"(d) : "c"(0));
  }
};

constexpr bool all(unsigned word, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if ((word >> bit & 1) == 0) return false;
  }
  return true;
}

bool has_avx2(const X86& cpu) {
  return all(cpu.state, {1, 2}) && all(cpu.c1, {12 /*fma*/, 28 /*avx*/, 29 /*f16c*/}) &&
         all(cpu.b7, {5 /*avx2*/});
}
#if defined(STRATA_AVX512)
bool has_avx512(const X86& cpu) {
  return has_avx2(cpu) && all(cpu.state, {5, 6, 7}) &&
         all(cpu.b7, {16 /*f*/, 17 /*dq*/, 30 /*bw*/, 31 /*vl*/}) &&
         all(cpu.c7, {1 /*vbmi*/, 8 /*gfni*/, 11 /*vnni*/}) && all(cpu.a71, {5 /*bf16*/});
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
  const X86 cpu;
#if defined(STRATA_AVX512)
  if (has_avx512(cpu)) best_first[count++] = kernels_avx512();
#endif
  if (has_avx2(cpu)) best_first[count++] = kernels_avx2();
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
