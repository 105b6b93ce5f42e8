// Where a Llama model's packed tensors lie in one piece of device memory, by their GGUF names.
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <string>

#include "../common/step_ops.h"
#include "../model/config.h"

namespace servewright::cuda_module {

using Types = std::map<std::string, std::string>;  // GGUF type of every tensor, by name

constexpr const char* WEIGHT_NAMES[] = {"BF16", "Q8_0", "Q4_0", "Q4_1"};  // as cuda::Weight counts
constexpr const char* WEIGHT_LIST = "BF16, Q8_0, Q4_0 or Q4_1";

// False where it is no weight type.
bool read_weight(const std::string& name, cuda::Weight* type);
// Throws std::invalid_argument; `caller` opens the message.
cuda::Weight weight_type(const char* caller, const std::string& name);

// Why the kernels cannot run the model, one sentence; empty if they can.
std::string unfit(const Config& config, const Types& types);

struct Place {
  size_t offset, bytes;
  int rows, cols;
  bool is_norm;       // float32 [cols]
  cuda::Weight type;  // otherwise
};

struct Layout {
  size_t bytes = 0;
  std::map<std::string, Place> places;

  const Place& at(const std::string& name) const { return places.at(name); }
};

// Q, K and V of one layer and type lie one right behind the other, the rest at multiples of 256.
// Throws std::invalid_argument where the model is unfit.
Layout lay_out(const Config& config, const Types& types);

}  // namespace servewright::cuda_module
