// The decode step of a Llama model on the device: one new token for each sequence of a batch.
//
//   x = E[token]
//   each layer:  qkv = Wqkv norm(x);  a = attention(rope(qkv), pages);  x += Wo a;
//                f = silu(Wgate norm(x)) * (Wup norm(x));  x += Wdown f
//   logits = Whead norm(x);  token = sample(logits)
//
// Launches  5 a layer (QKV, attention, O, gate and up, down), and 3: embedding, head, sampling.
//           One or two more in a layer whose Q, K and V have different weight types.
// Capture   a step neither allocates nor synchronises nor looks at device memory. Grids, pointers
// and
//           arguments follow from model, plan and batch, all of which stay the same from step to
//           step; token ids, lengths, page table and sampling parameters are contents of device
//           memory. So a captured step is replayed with new contents, as often as wanted. Run one
//           step before capture: modules load on first use.
// Beside    each launch but the first begins while the one before it ends, and fetches what that
// one
//           does not write: weights, K and V (device.cuh, "Launches side by side").
// Slots     a plan has a fixed number of slots; one of length 0 is empty and leaves no trace in the
//           others. A sequence's bits depend on its own tokens and pages alone: not on its
//           slot, the batch, the plan or the device (every op's promise, step_ops.h).
// Memory    the caller's. Plans of one model may share workspace and pool, steps one after another.
// Bytes     all weights once, K and V once (attention.cuh), and per token some activations in L2.
//
// Host code without CUDA headers: g++ compiles it for both back ends.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../common/step_ops.h"

namespace servewright::cuda {

struct LlamaLayer {
  // [(heads + 2 kv_heads) head_dim, hidden]: q, k, v, packed one behind the other where they have
  // one type. Of several types: parts of it from the top down. Unused ones have no rows.
  PackedMatrix qkv[3];
  PackedMatrix o;               // [hidden, heads head_dim]
  PackedMatrix gate, up;        // [ffn, hidden], of one type
  PackedMatrix down;            // [hidden, ffn]
  const float* attention_norm;  // [hidden]
  const float* ffn_norm;        // [hidden]
};

// What Rope's pairs turn by: position * scale * base^(-2 i / dims), divided by factors[i].
struct Rope {
  int dims;  // leading dimensions of a head that are rotated
  double base;
  double scale;
  const float* factors;  // [dims / 2] of host memory, or null
};

// Matrices and norms are device memory, aligned to 16 bytes; `layers` is host memory.
struct LlamaModel {
  int vocab, hidden, heads, kv_heads, head_dim, ffn;
  float norm_eps;
  bool interleaved_rope;  // as GGUF's Llama: pairs (2 i, 2 i + 1)
  int layer_count;
  const LlamaLayer* layers;
  PackedMatrix embedding;  // [vocab, hidden]
  PackedMatrix head;       // the same where tied
  const float* output_norm;
  const float* cosines;  // [positions, head_dim / 2], of fill_rope
  const float* sines;
  int positions;
};

// Why the kernels cannot run the model, one sentence; null if they can.
const char* unfit(const LlamaModel& model);

int launch_count(const LlamaModel& model);  // of a step

// The table of one position and the next: `positions` rows of head_dim / 2, in host memory.
void fill_rope(const Rope& rope, int head_dim, int positions, float* cosines, float* sines);

struct StepPlan {
  int tokens;            // slots, 1..MAX_DECODE_TOKENS
  int max_length;        // of a sequence, the new token counted
  int pages;             // of the pool, in every layer
  int attention_blocks;  // the grid's limit
  Tiling tiling;         // 0: each projection's own choice
  Start start;           // of each launch but the first; BEHIND changes nothing but time

  size_t page_elements;    // of one page in one layer
  size_t pool_bytes;       // [layer][page], any content, aligned to 16
  size_t workspace_bytes;  // aligned to 16. Its first tickets_bytes are 0 before the first step
  size_t tickets_bytes;    // with it, and whenever no step runs; the rest is of any content
  // Offsets in the workspace.
  size_t x, scaled, squares, qkv, attended, inner, logits, partials, sampling;
  int logits_stride;
};

// What a device holds at once.
struct Processors {
  int count;
  size_t shared_bytes;  // each
};

// Sizes a step of a fit model. Returns 0, or an error where a number is out of range.
int plan_step(const LlamaModel& model, int tokens, int max_length, int pages,
              const Processors& processors, StepPlan* plan);

// Device memory, but for the numbers. Nothing is checked: who fills it has.
struct StepBatch {
  const int32_t* token_ids;  // [tokens]; may be sampling.token_ids, and a replay goes on from there
  const int32_t* lengths;    // [tokens], the new token counted; 0: an empty slot
  const int32_t* page_table;  // [tokens, table_width]
  int table_width;
  SamplingArgs sampling;  // a row a slot; logits, stride, vocab and workspace are the step's
};

int decode_step(const LlamaModel& model, const StepPlan& plan, const StepBatch& batch,
                bfloat16* pool, uint8_t* workspace, Stream stream);

}  // namespace servewright::cuda
