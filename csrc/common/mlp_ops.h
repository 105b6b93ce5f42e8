// Small dense networks on CUDA: arguments and launcher, shared by both back ends and by host code.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "activation.h"

namespace servewright::cuda {

using Stream = void*;  // cudaStream_t

constexpr int MAX_MLP_WIDTH = 4096;
// The workspace's first bytes: 0 before the first launch with it; every launch leaves them 0.
constexpr size_t MLP_COUNTER_BYTES = 256;

// y = activation(W x + bias), float32 device memory.
struct MlpLayer {
  const float* weights;  // [rows, cols]
  const float* bias;     // [rows], or null
  int rows, cols;        // cols: rows of the layer before
  Activation activation;
};

// Bytes for `tokens` tokens. Aligned to 16; of any content but for its counters.
size_t mlp_workspace(const MlpLayer* layers, int count, int tokens);
// Blocks that so many multiprocessors hold at once: a launch's limit.
int mlp_blocks(int processors, int tokens);
// x [tokens, cols of the first], y [tokens, rows of the last]. `layers` is host memory. One launch
// for 64 layers; its blocks wait for each other, so at most `max_blocks` are asked for. Returns 0
// or a CUDA error code; allocates nothing and does not synchronise.
int mlp(const MlpLayer* layers, int count, const float* x, int tokens, float* y, uint8_t* workspace,
        int max_blocks, Stream stream);

}  // namespace servewright::cuda
