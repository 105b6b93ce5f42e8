// The ops of the decode step on CUDA: arguments and launchers. Plain data, so that host code and
// kernels share one declaration. Every launcher returns 0 or a CUDA error code, allocates nothing
// and does not synchronise. Every output element is reduced in an order that the shape of its
// operands alone decides: not the number of tokens, not the tiling, not the device.
//
// Start::BESIDE lets an op begin while the launch before it ends, with what that one does not
// write: weights, tables, lengths, page numbers, cached positions. Right only where that launch
// writes none of these. Token, bits and bytes are the same; below sm_90 it is BEHIND.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "bfloat16.h"
#include "start.h"

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

// The same in two halves, for a step: whoever writes x leaves x * weight as bf16 and the sums of
// the squares of every 16 columns (NextNorm), and a projection reads these (ScaledInput) instead of
// x.
constexpr int SQUARES_COLUMNS = 16;
// Floats of a row of sums, a multiple of 16 bytes; what pads them is never used.
constexpr int squares_stride(int cols) {
  return (cols + 4 * SQUARES_COLUMNS - 1) / (4 * SQUARES_COLUMNS) * 4;
}
struct NextNorm {
  const float* weight;  // [cols]; null: nothing is left
  bfloat16* scaled;     // [tokens, cols]
  float* squares;       // [tokens, squares_stride(cols)]
};
struct ScaledInput {
  const bfloat16* scaled;
  const float* squares;
  float eps;
};

// Tiles of a block: row_tiles of 16 rows (1, 2, 4), token_tiles of 8 tokens (1, 2, 4). 0: chosen
// for the shape. Only time depends on it, no bit of a result. Under a NormInput only 2 row tiles
// are compiled: single ops take it, steps do not.
struct Tiling {
  int row_tiles = 0;
  int token_tiles = 0;
};

// out[token * out_stride + row] = sum_k W[row, k] y[token, k]. QKV and the head.
int project_normed(const PackedMatrix& w, const NormInput& in, float* out, int out_stride,
                   int tokens, Stream stream, Tiling tiling = {}, Start start = Start::BEHIND);
int project_normed(const PackedMatrix& w, const ScaledInput& in, float* out, int out_stride,
                   int tokens, Stream stream, Tiling tiling = {}, Start start = Start::BEHIND);
// x[token, row] += sum_k W[row, k] in[token, k], then what `next` wants of the new x. O and down;
// in is [tokens, cols], x [tokens, rows].
int project_residual(const PackedMatrix& w, const bfloat16* in, float* x, int tokens, Stream stream,
                     Tiling tiling = {}, Start start = Start::BEHIND, const NextNorm& next = {});
// out[token, row] = silu(gate y) * (up y); gate and up have one type and one shape.
int gate_up(const PackedMatrix& gate, const PackedMatrix& up, const NormInput& in, bfloat16* out,
            int tokens, Stream stream, Tiling tiling = {}, Start start = Start::BEHIND);
int gate_up(const PackedMatrix& gate, const PackedMatrix& up, const ScaledInput& in, bfloat16* out,
            int tokens, Stream stream, Tiling tiling = {}, Start start = Start::BEHIND);

// ---- Embedding: csrc/cuda/embedding.cuh says how. ----

// x[token] = row token_ids[token] of the matrix, zeros where there is no such row; then what `next`
// wants of it.
int embed(const PackedMatrix& embedding, const int32_t* token_ids, float* x, int tokens,
          Stream stream, const NextNorm& next = {});

// ---- Attention: csrc/cuda/attention.cuh says how. ----

constexpr int PAGE_POSITIONS = 16;
constexpr int SPLIT_POSITIONS = 256;  // softmax is merged every 256 positions, from 0 on
constexpr int MAX_DECODE_TOKENS = 64;

// One new token a sequence: RoPE, KV append, attention.
struct AttentionArgs {
  const float* qkv;      // [tokens, (heads + 2 kv_heads) * head_dim], q then k then v, unrotated
  const float* cosines;  // [positions, head_dim / 2], one a pair; 1 where a pair is not rotated
  const float* sines;    // [positions, head_dim / 2]; 0 there
  bfloat16* pool;        // of this layer: [page][K, V][kv_heads][16][head_dim]
  const int32_t* page_table;  // [tokens, table_width]
  int table_width;
  const int32_t* lengths;  // [tokens], the new token counted; 0: an empty slot, its out is 0
  float* partials;         // attention_workspace() bytes, aligned to 16
  unsigned* tickets;       // [tokens * kv_heads], 0 before the first launch; every launch leaves 0
  bfloat16* out;           // [tokens, heads * head_dim]
  int heads;
  int kv_heads;           // heads / kv_heads is at most 8
  int head_dim;           // 64 or 128
  int max_length;         // no length is above it
  bool interleaved_rope;  // pairs (2i, 2i + 1), as in GGUF's Llama; else (i, i + head_dim / 2)
  int max_blocks;         // grid's limit: attention_blocks(), or any other above 0
};
size_t attention_workspace(int heads, int kv_heads, int head_dim, int max_length, int tokens);
// Blocks that `processors` SMs with so much shared memory each hold at once. Only time depends on
// it.
int attention_blocks(int head_dim, int processors, size_t shared_bytes);
int attention(const AttentionArgs& args, int tokens, Stream stream, Start start = Start::BEHIND);

// ---- Sampling: csrc/cuda/sampling.cuh says how. ----

constexpr int MAX_SAMPLING_VOCAB = 1 << 18;
constexpr int MAX_TOP_LOGPROBS = 20;

// Everything is device memory. A column a parameter, a value a row, as in a SamplingBatch; the
// caller has checked them (model/step.cpp). History and biases are flat: row i's part is
// [starts[i], starts[i + 1]).
struct SamplingArgs {
  const float* logits;       // [rows, logits_stride], readable up to the stride
  int logits_stride;         // a multiple of 4, at least vocab
  int vocab;                 // at most MAX_SAMPLING_VOCAB
  const float* temperature;  // 0: greedy
  const float* top_p;
  const float* min_p;
  const float* presence;
  const float* frequency;
  const float* repetition;
  const int32_t* top_k;  // 0: all
  const uint64_t* seed;
  const uint64_t* draw;
  const int32_t* history_ids;      // prompt, then output
  const int32_t* history_starts;   // [rows + 1]
  const int32_t* history_prompts;  // [rows], how many are prompt
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* bias_starts;   // [rows + 1]
  const uint8_t* logprobs;      // 1: the token's logprob is wanted
  const int32_t* top_logprobs;  // how many best ones are wanted, at most top_width
  int top_width;                // at most MAX_TOP_LOGPROBS
  uint8_t* workspace;           // sampling_workspace bytes, aligned to 16, of any content
  int32_t* token_ids;           // [rows]
  int32_t* finite;              // [rows], 1 where all logits are finite
  float* token_logprobs;        // [rows], written where wanted
  int32_t* top_ids;             // [rows, top_width], likewise
  float* top_values;            // [rows, top_width]
  unsigned* tickets;  // [rows], 0 before the first launch, each leaves 0; null: one block a row
};
// Blocks of a row, at most MAX_SAMPLING_BLOCKS in all and 1 without tickets; threads of a block, 32
// to 512. 0: chosen for the shape. Only time depends on it, no bit of a result.
struct SamplingGrid {
  int parts = 0;
  int threads = 0;
};
constexpr int MAX_SAMPLING_BLOCKS = 132;  // of an H100 SXM, each of its multiprocessors one
// Enough for fewer rows too.
size_t sampling_workspace(int vocab, int rows);
int sample(const SamplingArgs& args, int rows, Stream stream, Start start = Start::BEHIND,
           SamplingGrid grid = {});

}  // namespace servewright::cuda
