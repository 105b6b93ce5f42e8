// A projection's arguments, and what a block of it has: warps, stages, shared memory.
#pragma once
#include "../common/device.cuh"
#include "../common/step_ops.h"
#include "squares.cuh"
#include "weights.h"

namespace servewright::cuda {

using namespace servewright::device;

// The scaled ones read what the launch before left for their norm, the others x itself.
enum class Projection : int { NORMED, RESIDUAL, GATE_UP, SCALED, SCALED_GATE_UP };
SW_ANY constexpr bool has_norm(Projection kind) {
  return kind == Projection::NORMED || kind == Projection::GATE_UP;
}
SW_ANY constexpr bool is_scaled(Projection kind) {
  return kind == Projection::SCALED || kind == Projection::SCALED_GATE_UP;
}
SW_ANY constexpr bool has_two_matrices(Projection kind) {
  return kind == Projection::GATE_UP || kind == Projection::SCALED_GATE_UP;
}

struct GemmArgs {
  const uint8_t* weights;
  const uint8_t* up;  // of two matrices
  int rows, cols, tokens;
  const bfloat16* in;        // [tokens, cols]; under a norm x instead
  const float* x;            // [tokens, cols]
  const float* norm_weight;  // [cols]
  float eps, inverse_cols;
  void* out;
  int out_stride;
  const float* squares;  // of the scaled: [tokens, squares_stride(cols)]
  NextNorm next;         // RESIDUAL
};

// Part of the result's bits, so never tuned: the columns are cut into 8 ranges; the sums of a pair
// of ranges are added, then the four pairs in order.
constexpr int RANGES = 8;
constexpr int PAIRS = RANGES / 2;
constexpr int MMA_TOKENS = 8;
constexpr int MAX_STAGES = 8;

constexpr int smaller(int a, int b) { return a < b ? a : b; }

template <Weight TYPE, int ROW_TILES, int TOKEN_TILES>
struct Plan {
  static constexpr int TOKENS = TOKEN_TILES * MMA_TOKENS;
  // A warp a range; with 4 token tiles a warp a pair, one range behind the other: 128 registers
  // spilled up to 164 bytes, so these blocks have 4 warps and 168 registers a thread.
  static constexpr int WARPS = TOKEN_TILES == 4 ? PAIRS : RANGES;
  static constexpr int PARTS = RANGES / WARPS;
  static constexpr int THREADS = 32 * WARPS;
  // 80 registers suffice for one token tile; the largest tiling of Q4_1 needs 170.
  static constexpr bool LARGEST = TYPE == Weight::Q4_1 && ROW_TILES * TOKEN_TILES == 16;
  static constexpr int BLOCKS_PER_SM = TOKEN_TILES == 2 || LARGEST ? 2 : 3;

  static constexpr int STAGE_BYTES = ROW_TILES * Tile<TYPE>::BYTES;  // of one warp
  // 72 KB a block: three blocks fit an SM of the H100 (227 KB), two one of the A100 (164 KB).
  static constexpr int PIPELINE_BYTES = (PARTS == 1 ? 72 : 38) << 10;
  static constexpr int STAGES = smaller(MAX_STAGES, PIPELINE_BYTES / (WARPS * STAGE_BYTES));
  static_assert(STAGES >= 2, "a stage is in flight while another is multiplied");

  static constexpr int FRAGMENTS = ROW_TILES * TOKEN_TILES * 32;  // of 4 floats, of one warp
  // The sums take the pipeline's place when it is done, or, of pairs, lie behind it.
  static constexpr int SUMS_AT = PARTS == 1 ? 0 : WARPS * STAGES * STAGE_BYTES;
  static constexpr int SQUARES_AT = SUMS_AT + WARPS * FRAGMENTS * 16;
  static constexpr int SHARED_BYTES =
      -smaller(-WARPS * STAGES * STAGE_BYTES, -(SQUARES_AT + WARPS * TOKENS * 4));
};

struct Lane {
  int warp, lane, group, quad;  // group = lane / 4, quad = lane % 4: g and t of the fragments
};

SW_DEVICE Lane this_lane() {
  const int thread = static_cast<int>(thread_index()), lane = thread % 32;
  return {thread / 32, lane, lane / 4, lane % 4};
}

}  // namespace servewright::cuda
