// The ops of prefill on CUDA that are not matrix products: arguments and launchers. The products
// are cuBLAS's, through torch, on weights that dequantise() lays out; a layer of a chunk is
//
//   residual_norm | qkv product | rope_append, prefill_attention | o product | residual_norm
//   | gate and up product | silu_mul | down product
//
// Every launcher returns 0 or a CUDA error code, allocates nothing and does not synchronise. All
// pointers are device memory, aligned to 16 bytes (pages: to 4).
#pragma once
#include "step_ops.h"

namespace servewright::cuda {

// Of a matrix product's result.
enum class Element : int { FLOAT32, BF16 };

// ---- csrc/cuda/dequantise.cuh ----

// out[row, col] = W[row, col], row-major; BF16 exact, else rounded to the nearest bf16.
int dequantise(const PackedMatrix& w, bfloat16* out, Stream stream);

// ---- csrc/cuda/prefill.cuh ----

// One sequence's chunk: positions first_position .. first_position + tokens - 1.
struct PrefillArgs {
  const void* qkv;       // [tokens, (heads + 2 kv_heads) head_dim], q then k then v, unrotated
  Element qkv_type;      // BF16 counts as the float32 of the same value
  const float* cosines;  // [positions, head_dim / 2], of fill_rope
  const float* sines;    // likewise
  bfloat16* pool;        // of this layer: [page][K, V][kv_heads][16][head_dim], as for decode
  const int32_t* pages;  // the sequence's row of the page table; read up to the chunk's last page
  int first_position;    // 0 or more: everything before is in the pool
  int tokens;            // 0: nothing to do
  bfloat16* queries;     // [tokens, heads, head_dim]: rope_append leaves them to prefill_attention,
                         // rotated and scaled by log2(e) / sqrt(head_dim)
  bfloat16* out;         // [tokens, heads * head_dim]; of prefill_attention
  int heads;
  int kv_heads;           // divides heads
  int head_dim;           // 64 or 128
  bool interleaved_rope;  // pairs (2i, 2i + 1), as in GGUF's Llama; else (i, i + head_dim / 2)
};

// pool[position] = rotated k, v: the bits that decode's attention appends for the same qkv;
// queries = rotated, scaled q. Reads qkv, cosines, sines, pages.
int rope_append(const PrefillArgs& args, Stream stream);

// out = softmax(q K^T / sqrt(head_dim)) V over all positions up to each query's own. Reads queries,
// pool, pages: behind rope_append. A query's bits do not depend on the chunk that brought it.
// row_tiles: of 16 rows, a warp (1, 2). 0: chosen for the shape. Only time depends on it.
int prefill_attention(const PrefillArgs& args, Stream stream, int row_tiles = 0);

// ---- csrc/cuda/rows.cuh ----

struct ResidualNormArgs {
  float* x;           // [tokens, hidden]: the residual stream, read and, with delta, written
  const void* delta;  // [tokens, hidden], added to x; null: none
  Element delta_type;
  const float* weight;  // [hidden]
  float eps;
  bfloat16* out;  // [tokens, hidden]; null: only the sum is wanted
  int tokens;
  int hidden;  // a multiple of 8
};
// x += delta; out = x / sqrt(mean(x^2) + eps) * weight.
int residual_norm(const ResidualNormArgs& args, Stream stream);

// out[token, i] = silu(in[token, i]) * in[token, ffn + i]: in [tokens, 2 ffn] is gate, then up, of
// one product; out [tokens, ffn]; ffn is a multiple of 8.
int silu_mul(const void* in, Element in_type, bfloat16* out, int tokens, int ffn, Stream stream);

}  // namespace servewright::cuda
