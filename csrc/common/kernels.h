// What the host code and the kernels of every instruction set agree on: plain data and one table of
// functions. No functions, no STL: this header is compiled into the TU of each instruction set, and
// a weak symbol born there could replace the portable one at link time and kill an older CPU.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "activation.h"

namespace servewright {

enum TensorType : int { F32 = 0, F16, BF16, Q8_0, Q4_0, Q4_1, TENSOR_TYPES };

constexpr int BLOCK = 32;             // weights (and activations) that share a scale, as in GGUF
constexpr int KV_POSITIONS = 16;      // positions of a KV block: the lanes of 512 bits
constexpr int SPLIT_POSITIONS = 256;  // softmax is merged every 256 positions, wherever computed
constexpr int MAX_HEAD_DIM = 256;     // sizes the attention kernel's stack buffers
constexpr int MAX_LANES = 16;
constexpr int MAX_TILE = 16;

// Bytes of an activation block of one token, see Activations.
constexpr int ACTIVATION_BYTES = BLOCK + 4 * 4;
// Blocks are marked by eights, and a block's tokens too: 64 marks are one load of 512 bits.
constexpr int MARKS = 8;
// A value this many times larger than every other of its block is its outlier, and taken in float:
// the int8 of the others then need not share its scale. 6 % of SmolLM2's blocks have one. With them
// its logits are off by 0.08 rms from float32's instead of by 0.13.
constexpr float OUTLIER_ABOVE = 4.0f;

// A packed weight matrix [rows, cols]: groups of `lanes` rows, each group contiguous.
// Quantised: for each 32-column block  f16 scale[lanes], (Q4_1: f16 min[lanes]), then bytes of 4
// columns a row interleaved by rows: byte [i][row][j].  Q8_0: column 4 i + j, i < 8, stored plus
// 128 where the variant multiplies unsigned by signed.  Q4: i < 4, low nibble column 4 i + j, high
// nibble column 16 + 4 i + j.  Floats: [column][row].  Rows of the last group beyond `rows` are
// zero.
struct Matrix {
  const uint8_t* data;
  size_t group_bytes;
  int rows;
  int cols;
  TensorType type;
};

// Inputs of a projection, [tokens, cols], in tiles of `tile_tokens` tokens so that a kernel reaches
// all tokens of a tile from one pointer. A tile holds M tokens (only the last may hold fewer).
//   q8:  [tile][block] of int8 q[M][32], float scale[M], int32 minus_8_sums[M] (-8 times the sum of
//        q), float scaled_sums[M] (scale times it), float outlier[M]
//   marks: [tile][each MARKS of its tokens][block, up to a multiple of MARKS][MARKS tokens], 1 +
//   the outlier's column, 0: none f32: [tile][column][M]
// Behind q8 lies room for MAX_TILE tokens' numbers: a tile is read whole.
// q8 with marks or f32 is null if no consumer wants it.
struct Activations {
  uint8_t* q8;
  uint8_t* marks;
  float* f32;
  int tokens;
  int cols;
};

// Scale rows to unit RMS, y = x / sqrt(mean(x^2) + eps) * weight, and store them as activations.
// weight null: store x as it is. x_rows null: token t is row t of x.
struct NormArgs {
  const float* x;
  size_t x_stride;
  const int32_t* x_rows;
  const float* weight;
  float eps;
  Activations out;
};

// Where the tokens of a step write K and V: block and slot of each token, in elements.
// A block of a layer: [kv_head]{ K [head_dim][16], V [16][head_dim] } float16.
struct KvLayer {
  uint16_t* base;       // of this layer in block 0
  size_t block_stride;  // elements from a block to the next
  int kv_heads;
  int head_dim;
};

struct QkvArgs {
  Matrix q, k, v;
  Activations in;
  const float* cosines;  // [tokens, head_dim], of adjacent pairs
  const float* sines;    // [tokens, head_dim], negative at even dimensions
  float q_scale;         // 1 / sqrt(head_dim), folded into q
  float* q_out;          // [tokens, q.rows]
  KvLayer kv;
  const int32_t* kv_blocks;  // [tokens]
  const int32_t* kv_slots;   // [tokens]
};

// The epilogue of QkvArgs by itself: q, k and v come from elsewhere.
struct RopeArgs {
  const float* qkv;      // [tokens, (heads + 2 kv_heads) * head_dim], q then k then v, unrotated
  const float* cosines;  // [positions, head_dim / 2], one a pair
  const float* sines;    // likewise
  bool interleaved;      // pairs (2 i, 2 i + 1), else (i, i + head_dim / 2)
  int heads;
  float q_scale;
  float* q_out;  // [tokens, heads * head_dim], rotated and scaled
  KvLayer kv;
  const int32_t* positions;  // [tokens], -1: a token of no sequence, which is passed by
  const int32_t* kv_blocks;  // [tokens]
};

// out[token, row] (+)= w x. `accumulate` adds to what is there (the residual).
struct ProjectArgs {
  Matrix w;
  Activations in;
  float* out;
  size_t out_stride;
  bool accumulate;
};

struct GateUpArgs {
  Matrix gate, up;
  Activations in;
  Activations out;  // silu(gate) * up, the input of `down`
};

// Up to `attention_rows` queries of one sequence and KV head that read the same K and V.
// A row is token * group + head in group; splits are [split_begin, split_end) of 256 positions.
struct AttentionItem {
  int32_t sequence;
  int32_t kv_head;
  int32_t row_begin, row_end;
  int32_t split_begin, split_end;
  bool partial;  // leave (max, sum, values) in `partials` instead of a result in `out`
};

struct AttentionArgs {
  const float* q;  // [tokens, heads * head_dim], scaled
  float* out;      // [tokens, heads * head_dim]
  KvLayer kv;
  int heads;
  const int32_t* seq_starts;      // [sequences + 1]
  const int32_t* context_starts;  // [sequences]
  const int32_t* block_tables;    // [sequences, table_width]
  int table_width;
  const AttentionItem* items;
  int item_count;  // of all: an item beyond a call's range may be looked at, to fetch its K and V
  // Partials [slot, head, split]: max, sum, then head_dim values; a slot is a token that has them.
  float* partials;
  const int32_t* partial_slots;   // [tokens], -1 where the token has none
  const int32_t* partial_splits;  // [tokens], how many splits it has
  int max_splits;
};

struct ScanResult {
  float max;       // of the numbers that are not NaN
  int32_t argmax;  // lowest index among equals; 0 if all are NaN
  int32_t finite;  // 1 if all are finite
};

// A layer of a dense network: y[token, row] = activation(sum_k w[row, k] x[token, k] + bias[row]).
struct DenseArgs {
  const void* weights;  // [rows, cols], F32, F16 or BF16, rows `weights_stride` numbers apart
  size_t weights_stride;
  TensorType type;
  const float* bias;  // [rows], or null
  int rows, cols;
  Activation activation;  // SOFTMAX is left to `softmax`
  const float* x;         // [tokens, cols]; for BF16 unzipped
  size_t x_stride;
  float* y;  // [tokens, rows]
  size_t y_stride;
  int tokens;
};
// Inputs for weights of bfloat16: of each 2 `lanes` columns the even ones, then the odd ones, with
// zeros beyond the last.
struct UnzipArgs {
  const float* x;  // [tokens, cols]
  size_t x_stride;
  int cols;
  float* out;  // [tokens, cols up to a multiple of 2 MAX_LANES]
  size_t out_stride;
};
constexpr int DENSE_ROWS = 32;    // of a unit of work
constexpr int DENSE_TOKENS = 64;  // that a unit of work takes at most

struct Kernels {
  const char* name;
  int lanes;
  int tile_tokens;     // tokens of an activation tile
  int attention_rows;  // queries of an attention item
  bool unsigned_q8;    // Q8_0 is packed plus 128
  // [begin, end) of tokens
  void (*norm)(const NormArgs&, int begin, int end);
  // Merges partials and stores the results as activations. `row` holds heads * head_dim floats.
  void (*finish_attention)(const AttentionArgs&, const Activations& out, float* row, int begin,
                           int end);
  // [begin, end) of row groups (of 32 rows for gate_up), then of activation tiles
  void (*qkv)(const QkvArgs&, int begin, int end, int tile_begin, int tile_end);
  // [begin, end) of tokens
  void (*rope_append)(const RopeArgs&, int begin, int end);
  void (*project)(const ProjectArgs&, int begin, int end, int tile_begin, int tile_end);
  void (*gate_up)(const GateUpArgs&, int begin, int end, int tile_begin, int tile_end);
  // [begin, end) of items
  void (*attention)(const AttentionArgs&, int begin, int end);
  void (*scan)(const float* x, int n, ScanResult* result);
  // x[i] = exp((x[i] - max) / temperature) for x[i] <= max, relative error below 4e-16
  void (*exponentials)(double* x, int n, double max, double temperature);
  // [begin, end) of units of DENSE_ROWS rows, all tokens
  void (*dense)(const DenseArgs&, int begin, int end);
  // [begin, end) of tokens
  void (*unzip)(const UnzipArgs&, int begin, int end);
  // y in place; [begin, end) of tokens
  void (*softmax)(const DenseArgs&, int begin, int end);
};

}  // namespace servewright
