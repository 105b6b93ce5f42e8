// The ops of the decode step on CUDA: arguments and launchers. Plain data, so that host code and
// kernels share one declaration. Every launcher returns 0 or a CUDA error code, allocates nothing
// and does not synchronise. Every output element is reduced in an order that the shape of its
// operands alone decides: not the number of tokens, not the tiling, not the device.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "bfloat16.h"

namespace servewright::cuda {

using Stream = void*;  // cudaStream_t

// ---- Projections: csrc/cuda/gemm.cuh says how, csrc/cuda/weights.h gives the layout. ----

enum class Weight : int { BF16, Q8_0, Q4_0, Q4_1 };

// [rows, cols], packed by pack_weights, aligned to 16 bytes. cols is a multiple of 32 (of 8: BF16).
struct PackedMatrix {
  const uint8_t* data;
  int rows;
  int cols;
  Weight type;
};

// RMSNorm as a projection's prologue: y = x / sqrt(mean(x^2) + eps) * weight.
struct NormInput {
  const float* x;       // [tokens, cols]
  const float* weight;  // [cols]
  float eps;
};

// Tiles of a block: row_tiles of 16 rows (1, 2, 4), token_tiles of 8 tokens (1, 2, 4). 0: chosen
// for the shape. Only time depends on it, no bit of a result.
struct Tiling {
  int row_tiles = 0;
  int token_tiles = 0;
};

// out[token * out_stride + row] = sum_k W[row, k] y[token, k]. QKV and the head.
int project_normed(const PackedMatrix& w, const NormInput& in, float* out, int out_stride,
                   int tokens, Stream stream, Tiling tiling = {});
// x[token, row] += sum_k W[row, k] in[token, k]. O and down; in is [tokens, cols].
int project_residual(const PackedMatrix& w, const bfloat16* in, float* x, int tokens,
                     Stream stream, Tiling tiling = {});
// out[token, row] = silu(gate y) * (up y); gate and up have one type and one shape.
int gate_up(const PackedMatrix& gate, const PackedMatrix& up, const NormInput& in, bfloat16* out,
            int tokens, Stream stream, Tiling tiling = {});

}  // namespace servewright::cuda
