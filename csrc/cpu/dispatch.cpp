#include "dispatch.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace servewright {

extern const Kernels kernels_amx, kernels_avx512, kernels_avx2, kernels_base, kernels_avx2x16;

const std::vector<const Kernels*>& all_kernels() {
  static const std::vector<const Kernels*> all = {&kernels_amx, &kernels_avx512, &kernels_avx2,
                                                  &kernels_base, &kernels_avx2x16};
  return all;
}

namespace {

// Asks Linux (5.16 and newer) for the tile registers, for this process and its children.
bool may_use_tiles() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool may = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return may;
}

}  // namespace

bool is_runnable(const Kernels& kernels) {
  __builtin_cpu_init();
  if (&kernels == &kernels_base) return true;
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  if (&kernels == &kernels_avx2 || &kernels == &kernels_avx2x16) return has_avx2;
  const bool has_avx512 =
      has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni");
  if (&kernels == &kernels_avx512) return has_avx512;
  return has_avx512 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
         may_use_tiles();
}

const Kernels* find_kernels(const std::string& name) {
  for (const Kernels* kernels : all_kernels())
    if (name == kernels->name) return kernels;
  return nullptr;
}

}  // namespace servewright
