#include "dispatch.h"

#include <cstring>

namespace servewright {

extern const Kernels kernels_avx512, kernels_avx2, kernels_base, kernels_avx2x16;

const std::vector<const Kernels*>& all_kernels() {
  static const std::vector<const Kernels*> all = {&kernels_avx512, &kernels_avx2, &kernels_base,
                                                  &kernels_avx2x16};
  return all;
}

bool is_runnable(const Kernels& kernels) {
  __builtin_cpu_init();
  if (&kernels == &kernels_base) return true;
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  if (&kernels != &kernels_avx512) return has_avx2;
  return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

const Kernels* find_kernels(const std::string& name) {
  for (const Kernels* kernels : all_kernels())
    if (name == kernels->name) return kernels;
  return nullptr;
}

}  // namespace servewright
