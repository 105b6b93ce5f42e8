#include "step.h"

#include <cmath>

namespace servewright::cuda {
namespace {

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
constexpr size_t ALIGNMENT = 256;
constexpr int MAX_GROUP = 8;

int qkv_width(const LlamaModel& m) { return (m.heads + 2 * m.kv_heads) * m.head_dim; }

bool is_aligned(const void* p) { return p && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool is_whole(const PackedMatrix& w, int rows, int cols) {
  return w.rows == rows && w.cols == cols && is_aligned(w.data) &&
         cols % (w.type == Weight::BF16 ? 8 : 32) == 0;
}

// Parts end where heads end, so where a tile of rows does.
bool is_whole_qkv(const LlamaModel& m, const LlamaLayer& layer) {
  int rows = 0;
  for (const PackedMatrix& part : layer.qkv) {
    if (part.rows == 0) continue;
    if (!is_whole(part, part.rows, m.hidden) || part.rows < 0 || part.rows % m.head_dim)
      return false;
    rows += part.rows;
  }
  return rows == qkv_width(m);
}

const char* unfit(const LlamaModel& m, const LlamaLayer& layer) {
  const int q = m.heads * m.head_dim;
  if (!is_whole_qkv(m, layer) || !is_whole(layer.o, m.hidden, q) ||
      !is_whole(layer.gate, m.ffn, m.hidden) || !is_whole(layer.up, m.ffn, m.hidden) ||
      !is_whole(layer.down, m.hidden, m.ffn))
    return "a layer's matrix is missing, has another shape, is not aligned to 16 bytes, or its "
           "columns are not a multiple of 32 (of 8 in BF16).";
  if (layer.gate.type != layer.up.type) return "gate and up have different weight types.";
  if (!is_aligned(layer.attention_norm) || !is_aligned(layer.ffn_norm))
    return "a layer's norm is missing or not aligned to 16 bytes.";
  return nullptr;
}

// Hands out parts of a workspace.
class Layout {
 public:
  size_t take(size_t bytes) {
    const size_t at = end_;
    end_ += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
  }
  size_t end() const { return end_; }

 private:
  size_t end_ = 0;
};

}  // namespace

const char* unfit(const LlamaModel& m) {
  if (m.head_dim != 64 && m.head_dim != 128) return "heads must have 64 or 128 dimensions.";
  if (m.kv_heads < 1 || m.heads < 1 || m.heads % m.kv_heads || m.heads / m.kv_heads > MAX_GROUP)
    return "1 to 8 query heads must share a KV head.";
  if (m.vocab < 1 || m.vocab > MAX_SAMPLING_VOCAB) return "at most 262144 tokens are supported.";
  if (m.hidden < 8 || m.hidden % 8) return "the hidden size must be a multiple of 8.";
  if (m.layer_count < 1 || !m.layers) return "there must be a layer.";
  if (!is_whole(m.embedding, m.vocab, m.hidden) || !is_whole(m.head, m.vocab, m.hidden))
    return "embedding or head is missing, has another shape or is not aligned to 16 bytes.";
  if (!is_aligned(m.output_norm)) return "the output norm is missing or not aligned to 16 bytes.";
  if (!is_aligned(m.cosines) || !is_aligned(m.sines) || m.positions < 1)
    return "the RoPE tables are missing or not aligned to 16 bytes.";
  for (int i = 0; i < m.layer_count; ++i)
    if (const char* why = unfit(m, m.layers[i])) return why;
  return nullptr;
}

int launch_count(const LlamaModel& m) {
  int count = 3 + 4 * m.layer_count;
  for (int i = 0; i < m.layer_count; ++i)
    for (const PackedMatrix& part : m.layers[i].qkv) count += part.rows > 0;
  return count;
}

void fill_rope(const Rope& rope, int head_dim, int positions, float* cosines, float* sines) {
  const int pairs = head_dim / 2;
  for (int i = 0; i < pairs; ++i) {
    const bool is_rotated = 2 * i < rope.dims;
    double frequency = is_rotated ? rope.scale * std::pow(rope.base, -2.0 * i / rope.dims) : 0.0;
    if (is_rotated && rope.factors) frequency /= rope.factors[i];
    for (int position = 0; position < positions; ++position) {
      const double angle = position * frequency;
      cosines[static_cast<size_t>(position) * pairs + i] = static_cast<float>(std::cos(angle));
      sines[static_cast<size_t>(position) * pairs + i] = static_cast<float>(std::sin(angle));
    }
  }
}

int plan_step(const LlamaModel& m, int tokens, int max_length, int pages,
              const Processors& processors, StepPlan* plan) {
  if (tokens < 1 || tokens > MAX_DECODE_TOKENS || max_length < 1 || max_length > m.positions ||
      pages < 1 || processors.count < 1)
    return INVALID_VALUE;
  *plan = {};
  plan->tokens = tokens;
  plan->max_length = max_length;
  plan->pages = pages;
  plan->start = Start::BESIDE;
  plan->attention_blocks = attention_blocks(m.head_dim, processors.count, processors.shared_bytes);
  plan->page_elements = size_t{2} * m.kv_heads * PAGE_POSITIONS * m.head_dim;
  plan->pool_bytes = plan->page_elements * pages * m.layer_count * sizeof(bfloat16);
  plan->logits_stride = (m.vocab + 3) / 4 * 4;

  const size_t rows = static_cast<size_t>(tokens);
  Layout layout;
  // First, and of one size in all plans: what one plan left at 0 another finds there.
  plan->tickets_bytes = sizeof(unsigned) * MAX_DECODE_TOKENS * (m.kv_heads + 1);
  layout.take(plan->tickets_bytes);
  plan->x = layout.take(rows * m.hidden * sizeof(float));
  plan->scaled = layout.take(rows * m.hidden * sizeof(bfloat16));
  plan->squares = layout.take(rows * squares_stride(m.hidden) * sizeof(float));
  plan->qkv = layout.take(rows * qkv_width(m) * sizeof(float));
  plan->attended = layout.take(rows * m.heads * m.head_dim * sizeof(bfloat16));
  plan->inner = layout.take(rows * m.ffn * sizeof(bfloat16));
  plan->partials =
      layout.take(attention_workspace(m.heads, m.kv_heads, m.head_dim, max_length, tokens));
  plan->logits = layout.take(rows * plan->logits_stride * sizeof(float));
  plan->sampling = layout.take(sampling_workspace(m.vocab, tokens));
  plan->workspace_bytes = layout.end();
  return 0;
}

int decode_step(const LlamaModel& m, const StepPlan& plan, const StepBatch& batch, bfloat16* pool,
                uint8_t* workspace, Stream stream) {
  const auto floats = [&](size_t at) { return reinterpret_cast<float*>(workspace + at); };
  const auto halves = [&](size_t at) { return reinterpret_cast<bfloat16*>(workspace + at); };
  const int tokens = plan.tokens;
  float* const x = floats(plan.x);
  const ScaledInput normed = {halves(plan.scaled), floats(plan.squares), m.norm_eps};
  const auto next = [&](const float* weight) {
    return NextNorm{weight, halves(plan.scaled), floats(plan.squares)};
  };
  int status =
      embed(m.embedding, batch.token_ids, x, tokens, stream, next(m.layers[0].attention_norm));

  AttentionArgs attend = {};
  attend.qkv = floats(plan.qkv);
  attend.cosines = m.cosines;
  attend.sines = m.sines;
  attend.page_table = batch.page_table;
  attend.table_width = batch.table_width;
  attend.lengths = batch.lengths;
  attend.partials = floats(plan.partials);
  attend.tickets = reinterpret_cast<unsigned*>(workspace);
  attend.out = halves(plan.attended);
  attend.heads = m.heads;
  attend.kv_heads = m.kv_heads;
  attend.head_dim = m.head_dim;
  attend.max_length = plan.max_length;
  attend.interleaved_rope = m.interleaved_rope;
  attend.max_blocks = plan.attention_blocks;

  for (int i = 0; i < m.layer_count && !status; ++i) {
    const LlamaLayer& layer = m.layers[i];
    attend.pool = pool + i * plan.page_elements * plan.pages;
    const float* const norm_behind =
        i + 1 < m.layer_count ? m.layers[i + 1].attention_norm : m.output_norm;
    float* qkv = floats(plan.qkv);
    for (const PackedMatrix& part : layer.qkv) {
      if (status || part.rows == 0) continue;
      status =
          project_normed(part, normed, qkv, qkv_width(m), tokens, stream, plan.tiling, plan.start);
      qkv += part.rows;
    }
    if (!status) status = attention(attend, tokens, stream, plan.start);
    if (!status)
      status = project_residual(layer.o, attend.out, x, tokens, stream, plan.tiling, plan.start,
                                next(layer.ffn_norm));
    if (!status)
      status = gate_up(layer.gate, layer.up, normed, halves(plan.inner), tokens, stream,
                       plan.tiling, plan.start);
    if (!status)
      status = project_residual(layer.down, halves(plan.inner), x, tokens, stream, plan.tiling,
                                plan.start, next(norm_behind));
  }
  if (status) return status;

  status = project_normed(m.head, normed, floats(plan.logits), plan.logits_stride, tokens, stream,
                          plan.tiling, plan.start);
  if (status) return status;
  SamplingArgs draw = batch.sampling;
  draw.logits = floats(plan.logits);
  draw.logits_stride = plan.logits_stride;
  draw.vocab = m.vocab;
  draw.workspace = workspace + plan.sampling;
  draw.tickets = attend.tickets + MAX_DECODE_TOKENS * m.kv_heads;
  return sample(draw, tokens, stream, plan.start);
}

}  // namespace servewright::cuda
