// Which kernels run: the widest the CPU has, or the one that was asked for.
#pragma once
#include <string>
#include <vector>

#include "../common/kernels.h"

namespace servewright {

// All variants of this build, best first; the last (avx2x16) is for tests and never chosen.
const std::vector<const Kernels*>& all_kernels();

// Whether this CPU can run `kernels`.
bool is_runnable(const Kernels& kernels);

// The kernels named, or null if there are none of that name.
const Kernels* find_kernels(const std::string& name);

}  // namespace servewright
