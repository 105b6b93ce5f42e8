// Launcher of mlp.cuh.
#include "mlp.cuh"

#include <algorithm>

namespace servewright::cuda {
namespace {

using namespace mlp_kernel;

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
constexpr int MANY_TOKENS = 4;    // of a tile, from two tokens on

int ceil_div(int a, int b) { return (a + b - 1) / b; }

bool is_fit(const MlpLayer* layers, int count) {
  for (int i = 0; i < count; ++i) {
    const MlpLayer& layer = layers[i];
    for (const int width : {layer.rows, layer.cols})
      if (width < 1 || width > MAX_MLP_WIDTH) return false;
    if (i > 0 && layers[i - 1].rows != layer.cols) return false;
  }
  return count > 0;
}

// Of the layers between, a multiple of 4.
int hidden_width(const MlpLayer* layers, int count) {
  int width = 0;
  for (int i = 0; i + 1 < count; ++i) width = std::max(width, layers[i].rows);
  return ceil_div(width, 4) * 4;
}

}  // namespace

size_t mlp_workspace(const MlpLayer* layers, int count, int tokens) {
  return MLP_COUNTER_BYTES + size_t{2} * tokens * hidden_width(layers, count) * sizeof(float);
}

int mlp_blocks(int processors, int tokens) { return processors * blocks_per_sm(tokens); }

int mlp(const MlpLayer* layers, int count, const float* x, int tokens, float* y, uint8_t* workspace,
        int max_blocks, Stream stream) {
  if (!is_fit(layers, count) || tokens < 0 || max_blocks < 1) return INVALID_VALUE;
  if (tokens == 0) return 0;
  const int tile = tokens == 1 ? 1 : MANY_TOKENS;
  MlpArgs args = {};
  args.x = x;
  args.y = y;
  args.hidden = reinterpret_cast<float*>(workspace + MLP_COUNTER_BYTES);
  args.width = hidden_width(layers, count);
  args.counters = reinterpret_cast<unsigned*>(workspace);
  args.tokens = tokens;
  for (int first = 0; first < count; first += LAYERS) {
    args.first = first;
    args.count = std::min(count - first, LAYERS);
    args.is_end = first + args.count == count;
    std::copy_n(layers + first, args.count, args.layers);
    int widest = 0;
    for (int i = 0; i < args.count; ++i) widest = std::max(widest, args.layers[i].rows);
    const long long items = static_cast<long long>(ceil_div(widest, ROWS)) * ceil_div(tokens, tile);
    const unsigned blocks =
        static_cast<unsigned>(std::min<long long>((items + WARPS - 1) / WARPS, max_blocks));
    const int status =
        tile == 1 ? SW_LAUNCH_RESIDENT(mlp_layers<1>, blocks, THREADS, 0, stream, args)
                  : SW_LAUNCH_RESIDENT(mlp_layers<MANY_TOKENS>, blocks, THREADS, 0, stream, args);
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace servewright::cuda
