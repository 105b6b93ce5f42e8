// Whole decode steps of a Llama model, whose tensors come as GGUF rows under their GGUF names.
// clang-format off
// Sources: csrc/cuda/step.cpp csrc/cuda/embedding.cu csrc/cuda/gemm.cu csrc/cuda/gemm_bf16.cu csrc/cuda/gemm_q8_0.cu csrc/cuda/gemm_q4_0.cu csrc/cuda/gemm_q4_1.cu csrc/cuda/weights.cpp csrc/cuda/attention.cu csrc/cuda/sampling.cu
// clang-format on
#include "../../csrc/cuda/step.h"

#include <string.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cuda/weights.h"
#include "../../csrc/emulator/fault.h"
#include "../../csrc/emulator/grid.h"
#include "emulator_driver.h"

using namespace servewright;

namespace {

using emulator::Array;
using emulator::Use;

int integer(const driver::Request& request, const char* name) {
  return static_cast<int>(request.integer(name));
}

// A buffer of one address, whose contents are a row of the given [steps, ...] array in each step.
class Contents {
 public:
  template <class T>
  T* of(driver::Request& request, const std::string& name) {
    const driver::Shape& shape = request.shape(name);
    int64_t count = 1;
    for (size_t i = 1; i < shape.size(); ++i) count *= shape[i];
    const T* from = request.input<T>(name);
    T* to = request.workspace<T>(name + " now", count);
    rows_.push_back({reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to),
                     static_cast<size_t>(count) * sizeof(T)});
    return to;
  }
  void set(int64_t step) const {
    for (const Row& row : rows_)
      if (row.bytes) memcpy(row.to, row.from + step * row.bytes, row.bytes);
  }

 private:
  struct Row {
    const char* from;
    char* to;
    size_t bytes;
  };
  std::vector<Row> rows_;
};

// The model, packed: each matrix an array of its own that refuses writes.
class Packed {
 public:
  explicit Packed(driver::Request& request)
      : request_(request) {
    Llama& m = model;
    m.vocab = integer(request, "vocab");
    m.hidden = integer(request, "hidden");
    m.heads = integer(request, "heads");
    m.kv_heads = integer(request, "kv_heads");
    m.head_dim = integer(request, "head_dim");
    m.ffn = integer(request, "ffn");
    m.norm_eps = static_cast<float>(request.number("norm_eps"));
    m.interleaved_rope = true;
    m.layer_count = integer(request, "layers");
    fill_tables();
  }

  void pack() {
    Llama& m = model;
    const int q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
    for (int i = 0; i < m.layer_count; ++i) {
      const std::string block = "blk." + std::to_string(i) + ".";
      cuda::LlamaLayer layer = {};
      layer.qkv[0] = matrix("attn_q", {block + "attn_q", block + "attn_k", block + "attn_v"},
                            {q, kv, kv}, m.hidden);
      layer.o = matrix("attn_output", {block + "attn_output"}, {m.hidden}, q);
      layer.gate = matrix("ffn_gate", {block + "ffn_gate"}, {m.ffn}, m.hidden);
      layer.up = matrix("ffn_gate", {block + "ffn_up"}, {m.ffn}, m.hidden);
      layer.down = matrix("ffn_down", {block + "ffn_down"}, {m.hidden}, m.ffn);
      layer.attention_norm = request_.input<float>(block + "attn_norm.weight");
      layer.ffn_norm = request_.input<float>(block + "ffn_norm.weight");
      layers_.push_back(layer);
    }
    m.layers = layers_.data();
    m.embedding = matrix("token_embd", {"token_embd"}, {m.vocab}, m.hidden);
    m.head = m.embedding;
    if (request_.has("output.weight")) m.head = matrix("output", {"output"}, {m.vocab}, m.hidden);
    m.output_norm = request_.input<float>("output_norm.weight");
    if (const char* why = cuda::unfit(m)) emulator::fault("unfit: %s", why);
  }

  using Llama = cuda::LlamaModel;
  Llama model = {};

 private:
  Array& constant(const std::string& name, size_t bytes) {
    return *constants_.emplace_back(std::make_unique<Array>(name, bytes, Use::READ));
  }

  void fill_tables() {
    model.positions = integer(request_, "max_length");
    const float* factors =
        request_.has("rope_freqs.weight") ? request_.input<float>("rope_freqs.weight") : nullptr;
    const cuda::Rope rope = {integer(request_, "rope_dims"), request_.number("rope_base"),
                             request_.number("rope_scale"), factors};
    const size_t bytes = sizeof(float) * model.positions * model.head_dim / 2;
    Array &cosines = constant("cosines", bytes), &sines = constant("sines", bytes);
    auto* const c = reinterpret_cast<float*>(cosines.data());
    auto* const s = reinterpret_cast<float*>(sines.data());
    cuda::fill_rope(rope, model.head_dim, model.positions, c, s);
    cosines.protect();
    sines.protect();
    model.cosines = c;
    model.sines = s;
  }

  cuda::PackedMatrix matrix(const std::string& type_of, const std::vector<std::string>& names,
                            const std::vector<int>& rows, int cols) {
    const auto type = static_cast<cuda::Weight>(integer(request_, ("type." + type_of).c_str()));
    size_t bytes = 0;
    int all_rows = 0;
    for (const int count : rows) {
      bytes += cuda::packed_bytes(type, count, cols);
      all_rows += count;
    }
    Array& packed = constant(names[0], bytes);
    auto* to = reinterpret_cast<uint8_t*>(packed.data());
    for (size_t i = 0; i < names.size(); ++i) {
      cuda::pack_weights(type, rows[i], cols, request_.input<uint8_t>(names[i] + ".weight"), to);
      to += cuda::packed_bytes(type, rows[i], cols);
    }
    packed.protect();
    return {reinterpret_cast<const uint8_t*>(packed.data()), all_rows, cols, type};
  }

  driver::Request& request_;
  std::vector<cuda::LlamaLayer> layers_;
  std::vector<std::unique_ptr<Array>> constants_;
};

template <class T>
void put(driver::Request& request, const char* name, const std::vector<T>& values,
         driver::Shape shape) {
  T* to = request.output<T>(name, shape);
  if (!values.empty()) memcpy(to, values.data(), values.size() * sizeof(T));
}

// Makes every part of the workspace an array of its own, between guards, and lets the plan's
// offsets lead there. Returns the workspace: the array of its first part.
uint8_t* separate(driver::Request& request, cuda::StepPlan* plan) {
  std::map<size_t, size_t*> parts;  // by offset
  for (size_t* part : {&plan->x, &plan->scaled, &plan->squares, &plan->qkv, &plan->attended,
                       &plan->inner, &plan->partials, &plan->logits, &plan->sampling})
    parts[*part] = part;
  size_t end = plan->workspace_bytes;
  std::map<size_t*, uint8_t*> arrays;
  for (auto part = parts.rbegin(); part != parts.rend(); end = part->first, ++part)
    arrays[part->second] = request.workspace<uint8_t>(
        "workspace from " + std::to_string(part->first), static_cast<int64_t>(end - part->first));
  // Last, as the kernel hands out addresses downwards: offsets from it are then positive.
  auto* const first = request.workspace<uint8_t>("workspace from 0", static_cast<int64_t>(end));
  for (const auto& [part, array] : arrays) *part = static_cast<size_t>(array - first);
  return first;
}

}  // namespace

// Replays one step with new contents: what a captured graph does.
SW_OP(decode) {
  Packed packed(request);
  const cuda::LlamaModel& model = packed.model;
  const driver::Shape table = request.shape("page_table");
  const int64_t steps = table[0];
  const int tokens = static_cast<int>(table[1]);
  cuda::StepPlan plan;
  request.check(cuda::plan_step(model, tokens, integer(request, "max_length"),
                                integer(request, "pages"),
                                {integer(request, "processors"), 227 << 10}, &plan));
  plan.tiling = {integer(request, "row_tiles"), integer(request, "token_tiles")};
  uint8_t* const workspace = separate(request, &plan);
  const auto elements = static_cast<int64_t>(plan.pool_bytes / sizeof(bfloat16));
  auto* pool = request.has("pool") ? request.inout<bfloat16>("pool")
                                   : request.workspace<bfloat16>("pool", elements);
  memset(workspace, 0, plan.tickets_bytes);

  Contents contents;
  cuda::StepBatch batch = {};
  cuda::SamplingArgs& draw = batch.sampling;
  draw.top_width = integer(request, "top_width");
  draw.token_ids = request.workspace<int32_t>("drawn", tokens);
  draw.finite = request.workspace<int32_t>("finite", tokens);
  draw.token_logprobs = request.workspace<float>("logprob", tokens);
  draw.top_ids = request.workspace<int32_t>("top ids", tokens * draw.top_width);
  draw.top_values = request.workspace<float>("top values", tokens * draw.top_width);
  const bool feeds_itself = request.integer("feeds_itself") != 0;
  const int32_t* given = contents.of<int32_t>(request, "token_ids");
  batch.token_ids = feeds_itself ? draw.token_ids : given;
  batch.lengths = contents.of<int32_t>(request, "lengths");
  batch.page_table = contents.of<int32_t>(request, "page_table");
  batch.table_width = static_cast<int>(table[2]);
  draw.temperature = contents.of<float>(request, "temperature");
  draw.top_p = contents.of<float>(request, "top_p");
  draw.min_p = contents.of<float>(request, "min_p");
  draw.presence = contents.of<float>(request, "presence");
  draw.frequency = contents.of<float>(request, "frequency");
  draw.repetition = contents.of<float>(request, "repetition");
  draw.top_k = contents.of<int32_t>(request, "top_k");
  draw.seed = contents.of<uint64_t>(request, "seed");
  draw.draw = contents.of<uint64_t>(request, "draw");
  draw.history_ids = contents.of<int32_t>(request, "history_ids");
  draw.history_starts = contents.of<int32_t>(request, "history_starts");
  draw.history_prompts = contents.of<int32_t>(request, "history_prompts");
  draw.bias_ids = contents.of<int32_t>(request, "bias_ids");
  draw.bias_values = contents.of<float>(request, "bias_values");
  draw.bias_starts = contents.of<int32_t>(request, "bias_starts");
  draw.logprobs = contents.of<uint8_t>(request, "logprobs");
  draw.top_logprobs = contents.of<int32_t>(request, "top_logprobs");
  packed.pack();

  std::vector<float> logits;
  std::vector<int32_t> drawn, finite;
  std::vector<int64_t> launches;
  std::vector<uint8_t> tickets;
  for (int64_t step = 0; step < steps; ++step) {
    contents.set(step);
    if (feeds_itself && step == 0) memcpy(draw.token_ids, given, tokens * sizeof(int32_t));
    const long before = emulator::launch_count;
    request.check(cuda::decode_step(model, plan, batch, pool, workspace, nullptr));
    launches.push_back(emulator::launch_count - before);
    const auto* rows = reinterpret_cast<const float*>(workspace + plan.logits);
    for (int token = 0; token < tokens; ++token, rows += plan.logits_stride)
      logits.insert(logits.end(), rows, rows + model.vocab);
    drawn.insert(drawn.end(), draw.token_ids, draw.token_ids + tokens);
    finite.insert(finite.end(), draw.finite, draw.finite + tokens);
    tickets.insert(tickets.end(), workspace, workspace + plan.tickets_bytes);
  }
  put(request, "logits", logits, {steps, tokens, model.vocab});
  put(request, "token_ids_drawn", drawn, {steps, tokens});
  put(request, "finite_logits", finite, {steps, tokens});
  put(request, "launches", launches, {steps});
  put(request, "tickets", tickets, {steps, static_cast<int64_t>(plan.tickets_bytes)});
}

// Rows of a matrix that comes as GGUF rows.
SW_OP(embed) {
  const auto type = static_cast<cuda::Weight>(request.integer("type"));
  const int rows = integer(request, "rows"), cols = integer(request, "cols");
  const auto* from = request.input<uint8_t>("weights");
  Array packed("packed", cuda::packed_bytes(type, rows, cols), Use::READ);
  auto* const to = reinterpret_cast<uint8_t*>(packed.data());
  cuda::pack_weights(type, rows, cols, from, to);
  packed.protect();
  const int tokens = static_cast<int>(request.shape("token_ids")[0]);
  cuda::NextNorm next = {};
  if (request.has("next"))
    next = {request.input<float>("next"), request.output<bfloat16>("scaled", {tokens, cols}),
            request.output<float>("squares", {tokens, cuda::squares_stride(cols)})};
  request.check(cuda::embed({to, rows, cols, type}, request.input<int32_t>("token_ids"),
                            request.output<float>("x", {tokens, cols}), tokens, nullptr, next));
}
