// Dense networks: one launch, `launches` times with one workspace.
// Sources: csrc/cuda/mlp.cu
#include <string>
#include <vector>

#include "../../csrc/common/mlp_ops.h"
#include "emulator_driver.h"

using namespace servewright;

SW_OP(mlp) {
  const auto count = static_cast<int>(request.integer("layers"));
  const int tokens = static_cast<int>(request.integer("tokens"));
  const int32_t* activations = request.input<int32_t>("activations");
  std::vector<cuda::MlpLayer> layers;
  for (int i = 0; i < count; ++i) {
    const std::string w = "w" + std::to_string(i), b = "b" + std::to_string(i);
    layers.push_back({request.input<float>(w), request.has(b) ? request.input<float>(b) : nullptr,
                      static_cast<int>(request.shape(w)[0]), static_cast<int>(request.shape(w)[1]),
                      static_cast<Activation>(activations[i])});
  }
  const float* x = request.input<float>("x");
  float* y = request.output<float>("y", {tokens, count ? layers.back().rows : 1});
  const auto bytes = static_cast<int64_t>(cuda::mlp_workspace(layers.data(), count, tokens));
  uint8_t* workspace = request.workspace<uint8_t>("workspace", bytes);
  for (size_t i = 0; i < cuda::MLP_COUNTER_BYTES; ++i) workspace[i] = 0;
  for (int64_t i = 0; i < request.integer("launches"); ++i)
    request.check(cuda::mlp(layers.data(), count, x, tokens, y, workspace,
                            static_cast<int>(request.integer("max_blocks")), nullptr));
}
