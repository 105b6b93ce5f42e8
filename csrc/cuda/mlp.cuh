// A whole dense network in one launch: y = activation(W x + bias), layer after layer.
//
// Shapes   x [tokens, cols], W [rows, cols], bias [rows], float32, widths 1 to 4096.
// Work     a warp takes ROWS rows and a tile of TOKENS tokens at a time. Between layers the grid
//          meets: all its blocks are resident, arrive at a counter and wait for it. A launch and
//          its boundary cost more than a meeting, and most layers here are smaller than either.
// Order    lane i sums the columns 128 j + 4 i + c, j ascending, in chain c; then (0 + 1) + (2 +
// 3),
//          then lanes by halves, then the bias. No tiling, token or grid enters.
// Error    of a product (ceil(cols / 128) + 8) u sum|terms|, u = 2^-24. Activations: see
// activate(). Bytes    W once for each tile of tokens; where a layer's weights exceed L2 that is
// from memory.
//          Activations come from L2 (4 cols for ROWS rows), or L1 where a block's warps share them.
#pragma once
#include "../common/device.cuh"
#include "../common/mlp_ops.h"

namespace servewright::cuda::mlp_kernel {

using namespace servewright::device;

constexpr int LAYERS = 64;  // of a launch: 2 KB of its 4 KB of arguments
constexpr int WARP = 32;
constexpr int WARPS = 4;  // few, so that narrow layers spread over many multiprocessors
constexpr int THREADS = WARPS * WARP;
constexpr int blocks_per_sm(int tokens) { return tokens == 1 ? 8 : 4; }  // by registers: 64, 128
constexpr int ROWS = 2;
constexpr int STEP = 4 * WARP;  // columns of a warp's load

struct MlpArgs {
  MlpLayer layers[LAYERS];
  int first;  // of the launch, of all layers
  int count;
  bool is_end;         // the last layer goes to y
  const float* x;      // of layer 0
  float* y;            // of the last one
  float* hidden;       // two of [tokens, width]
  int width;           // a multiple of 4
  unsigned* counters;  // arrivals, departures
  int tokens;
};

using Four = Vector<float, 4>;

SW_DEVICE float exponential(float x) { return exp2(x * 1.44269504f); }
SW_DEVICE float sigmoid(float z) { return z < -87.0f ? 0.0f : 1.0f / (1.0f + exponential(-z)); }

// Cephes' tanhf (Moshier): z + z^3 P(z^2) below 0.625.
SW_DEVICE float tanh(float z) {
  const float size = absolute(z), square = z * z;
  float p = fma(square, -5.70498872745e-3f, 2.06390887954e-2f);
  p = fma(p, square, -5.37397155531e-2f);
  p = fma(p, square, 1.33314422036e-1f);
  p = fma(p, square, -3.33332819422e-1f);
  const float small = fma(p * square, z, z);
  const float large = 1.0f - 2.0f / (1.0f + exponential(minimum(2.0f * size, 87.0f)));
  return size < 0.625f ? small : z < 0.0f ? -large : large;
}

// z Phi(z); the polynomial is that of csrc/cpu/dense.h.
SW_DEVICE float gelu(float z) {
  constexpr float FIT[] = {0.141041741f, 0.14121677f,  0.121316135f, 0.102367759f,  -0.0159383118f,
                           0.143121436f, -0.24739626f, 0.144219771f, -0.0299490485f};
  constexpr int DEGREE = sizeof FIT / sizeof *FIT - 1;
  const float size = minimum(absolute(z), 16.0f);
  const float t = 1.0f / fma(size, 0.353553391f, 1.0f);
  float p = FIT[DEGREE];
  SW_UNROLL
  for (int i = DEGREE - 1; i >= 0; --i) p = fma(p, t, FIT[i]);
  const float tail = size * (p * t) * exponential(-0.5f * (size * size));
  return z < 0.0f ? -tail : z - tail;
}

// Relative errors beside that of z, in u: sigmoid 1.5 |z| + 16 (0 below -87), tanh 16; of |z|: gelu
// and gelu_tanh 16. NaN stays NaN.
SW_DEVICE float activate(float z, Activation activation) {
  switch (activation) {
    case Activation::RELU:
      return z < 0.0f ? 0.0f : z;
    case Activation::GELU:
      return gelu(z);
    case Activation::GELU_TANH:
      return z * sigmoid(fma(z * z * z, 0.044715f, z) * 1.59576912f);
    case Activation::TANH:
      return tanh(z);
    case Activation::SIGMOID:
      return sigmoid(z);
    default:
      return z;
  }
}

// All blocks of the grid have come here; what they wrote before is seen behind.
SW_DEVICE void meet(const MlpArgs& args, unsigned& round) {
  const unsigned blocks = grid_size().x;
  barrier();
  if (blocks == 1) return;
  ++round;
  if (thread_index() == 0) {
    atomic_add_acq_rel(args.counters, 1u);
    while (load_acquire(args.counters) < round * blocks) spin_pause();
  }
  barrier();
}

// Leaves the counters 0: the last to depart knows that nobody waits any more.
SW_DEVICE void depart(const MlpArgs& args) {
  const unsigned blocks = grid_size().x;
  if (blocks == 1 || thread_index() != 0) return;
  if (atomic_add_acq_rel(args.counters + 1, 1u) != blocks - 1) return;
  store_release(args.counters, 0);
  store_release(args.counters + 1, 0);
}

// Four columns; zeros from `left` on. Whole and aligned ones are one load.
template <bool READ_ONLY>
SW_DEVICE Four load_four(const float* p, int left, bool aligned) {
  if (aligned) {
    if constexpr (READ_ONLY) return bit_cast<Four>(load_16(p));
    return load_vector<Four>(p);
  }
  Four v;
  SW_UNROLL
  for (int c = 0; c < 4; ++c) v[c] = c < left ? p[c] : 0.0f;
  return v;
}

SW_DEVICE bool is_aligned(const float* p, int stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
}

// Products of ROWS rows from `row` and TOKENS tokens from `token`: every lane gets all of them.
template <int TOKENS>
SW_DEVICE void multiply(const MlpLayer& layer, const float* x, int x_stride, int row, int token,
                        int tokens, float (&sums)[ROWS][TOKENS]) {
  const int lane = static_cast<int>(thread_index() % WARP);
  const bool w_aligned = is_aligned(layer.weights, layer.cols);
  const bool x_aligned = is_aligned(x, x_stride) && layer.cols % 4 == 0;
  const float* w_rows[ROWS];
  const float* x_rows[TOKENS];
  // Rows and tokens past the end are the last again; nobody stores what they give.
  SW_UNROLL
  for (int r = 0; r < ROWS; ++r)
    w_rows[r] = layer.weights + static_cast<size_t>(minimum(row + r, layer.rows - 1)) * layer.cols;
  SW_UNROLL
  for (int t = 0; t < TOKENS; ++t)
    x_rows[t] = x + static_cast<size_t>(minimum(token + t, tokens - 1)) * x_stride;
  Four chains[ROWS][TOKENS] = {};
  for (int column = 4 * lane; column < layer.cols; column += STEP) {
    const int left = layer.cols - column;
    Four w[ROWS], in[TOKENS];
    SW_UNROLL
    for (int r = 0; r < ROWS; ++r) w[r] = load_four<true>(w_rows[r] + column, left, w_aligned);
    SW_UNROLL
    for (int t = 0; t < TOKENS; ++t) in[t] = load_four<false>(x_rows[t] + column, left, x_aligned);
    SW_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      SW_UNROLL
      for (int t = 0; t < TOKENS; ++t) {
        SW_UNROLL
        for (int c = 0; c < 4; ++c) chains[r][t][c] = fma(w[r][c], in[t][c], chains[r][t][c]);
      }
    }
  }
  SW_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    SW_UNROLL
    for (int t = 0; t < TOKENS; ++t) {
      const Four& chain = chains[r][t];
      float sum = (chain[0] + chain[1]) + (chain[2] + chain[3]);
      SW_UNROLL
      for (int mask = WARP / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      sums[r][t] = sum;
    }
  }
}

template <int TOKENS>
SW_DEVICE void run_layer(const MlpLayer& layer, const float* x, int x_stride, float* y,
                         int y_stride, int tokens) {
  const int lane = static_cast<int>(thread_index() % WARP);
  const int warp =
      static_cast<int>(block_index().x) * WARPS + static_cast<int>(thread_index()) / WARP;
  const int tiles = (tokens + TOKENS - 1) / TOKENS;
  const int items = (layer.rows + ROWS - 1) / ROWS * tiles;
  for (int item = warp; item < items; item += static_cast<int>(grid_size().x) * WARPS) {
    const int row = item / tiles * ROWS, token = item % tiles * TOKENS;
    float sums[ROWS][TOKENS];
    multiply<TOKENS>(layer, x, x_stride, row, token, tokens, sums);
    float mine = 0;
    SW_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      SW_UNROLL
      for (int t = 0; t < TOKENS; ++t) mine = lane == t * ROWS + r ? sums[r][t] : mine;
    }
    const int r = row + lane % ROWS, t = token + lane / ROWS;
    if (lane >= ROWS * TOKENS || r >= layer.rows || t >= tokens) continue;
    const float z = layer.bias ? mine + layer.bias[r] : mine;
    y[static_cast<size_t>(t) * y_stride + r] = activate(z, layer.activation);
  }
}

// In place, a block a token. Thread i sums the rows i, i + THREADS, ...; then lanes by halves, then
// warps in order.
SW_DEVICE void softmax(float* y, int y_stride, int rows, int tokens) {
  SW_SHARED(float, warps, 2 * WARPS);
  const int thread = static_cast<int>(thread_index()), warp = thread / WARP;
  for (int token = static_cast<int>(block_index().x); token < tokens;
       token += static_cast<int>(grid_size().x)) {
    float* const z = y + static_cast<size_t>(token) * y_stride;
    float most = -3.402823466e38f;
    for (int row = thread; row < rows; row += THREADS) most = maximum(most, z[row]);
    SW_UNROLL
    for (int mask = WARP / 2; mask > 0; mask /= 2) most = maximum(most, shuffle_xor(most, mask));
    if (thread % WARP == 0) warps[warp] = most;
    barrier();
    most = warps[0];
    SW_UNROLL
    for (int w = 1; w < WARPS; ++w) most = maximum(most, warps[w]);
    float sum = 0;
    for (int row = thread; row < rows; row += THREADS) {
      const float d = z[row] - most;
      const float e = d < -87.0f ? 0.0f : exponential(d);
      z[row] = e;
      sum += e;
    }
    SW_UNROLL
    for (int mask = WARP / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (thread % WARP == 0) warps[WARPS + warp] = sum;
    barrier();
    sum = warps[WARPS];
    SW_UNROLL
    for (int w = 1; w < WARPS; ++w) sum += warps[WARPS + w];
    const float inverse = 1.0f / sum;
    for (int row = thread; row < rows; row += THREADS) z[row] *= inverse;
  }
}

template <int TOKENS>
SW_KERNEL(THREADS, blocks_per_sm(TOKENS))
void mlp_layers(MlpArgs args) {
  unsigned round = 0;
  const size_t half = static_cast<size_t>(args.tokens) * args.width;
  for (int i = 0; i < args.count; ++i) {
    const MlpLayer& layer = args.layers[i];
    const int at = args.first + i;
    const bool is_last = args.is_end && i + 1 == args.count;
    const float* const x = at == 0 ? args.x : args.hidden + (at + 1) % 2 * half;
    float* const y = is_last ? args.y : args.hidden + at % 2 * half;
    const int x_stride = at == 0 ? layer.cols : args.width;
    const int y_stride = is_last ? layer.rows : args.width;
    run_layer<TOKENS>(layer, x, x_stride, y, y_stride, args.tokens);
    if (layer.activation == Activation::SOFTMAX) {
      meet(args, round);
      softmax(y, y_stride, layer.rows, args.tokens);
    }
    if (i + 1 < args.count) meet(args, round);
  }
  depart(args);
}

}  // namespace servewright::cuda::mlp_kernel
