#include "model.h"

#include <set>
#include <stdexcept>

#include "../cuda/weights.h"
#include "runtime.h"

namespace servewright::cuda_module {
namespace {

constexpr int64_t MOST_ROWS = 1 << 24;  // with as many columns, sizes stay within 48 bits

// The arrays of Sampling by name. Kernels read them value by value: natural alignment suffices.
class Columns {
 public:
  explicit Columns(const py::dict& arrays)
      : arrays_(arrays) {}

  template <class T>
  T* of(const char* name, std::initializer_list<Size> shape) {
    if (!arrays_.contains(name))
      throw std::invalid_argument("Sampling: " + std::string(name) + " is missing");
    read_.insert(name);
    return tensors.read<T>(arrays_[name], name, shape, sizeof(T));
  }

  void refuse_others() const {
    for (const auto& [key, array] : arrays_)
      if (const auto name = py::str(key).cast<std::string>(); !read_.count(name))
        throw std::invalid_argument("Sampling: there is no array " + name);
  }

  Tensors tensors{"Sampling"};

 private:
  const py::dict& arrays_;
  std::set<std::string> read_;
};

}  // namespace

Matrix::Matrix(const std::string& type, int64_t rows, int64_t cols, const py::object& data) {
  packed_.type = weight_type("Matrix", type);
  const int multiple = packed_.type == cuda::Weight::BF16 ? 8 : cuda::BLOCK_COLS;
  if (rows < 1 || rows > MOST_ROWS)
    throw std::invalid_argument("Matrix: rows must be in 1..2^24, got " + std::to_string(rows));
  if (cols < 1 || cols > MOST_ROWS || cols % multiple)
    throw std::invalid_argument("Matrix: cols must be a multiple of " + std::to_string(multiple) +
                                " in 1..2^24 for " + type + ", got " + std::to_string(cols));
  packed_.rows = static_cast<int>(rows);
  packed_.cols = static_cast<int>(cols);
  Tensors tensors("Matrix");
  const size_t bytes = cuda::packed_bytes(packed_.type, packed_.rows, packed_.cols);
  packed_.data = tensors.read<const uint8_t>(data, "data", {static_cast<int64_t>(bytes)});
  device_ = tensors.device();
  kept_ = tensors.kept();
}

Sampling::Sampling(const py::dict& arrays) {
  Columns columns(arrays);
  cuda::SamplingArgs& a = args_;
  a.temperature = columns.of<const float>("temperature", {Size::any(&rows_)});
  const Size rows = rows_, starts = rows_ + 1;
  a.top_p = columns.of<const float>("top_p", {rows});
  a.min_p = columns.of<const float>("min_p", {rows});
  a.presence = columns.of<const float>("presence", {rows});
  a.frequency = columns.of<const float>("frequency", {rows});
  a.repetition = columns.of<const float>("repetition", {rows});
  a.top_k = columns.of<const int32_t>("top_k", {rows});
  a.seed = columns.of<const uint64_t>("seed", {rows});
  a.draw = columns.of<const uint64_t>("draw", {rows});
  int count = 0;
  a.history_ids = columns.of<const int32_t>("history_ids", {Size::any(&count)});
  a.history_starts = columns.of<const int32_t>("history_starts", {starts});
  a.history_prompts = columns.of<const int32_t>("history_prompts", {rows});
  a.bias_ids = columns.of<const int32_t>("bias_ids", {Size::any(&count)});
  a.bias_values = columns.of<const float>("bias_values", {count});
  a.bias_starts = columns.of<const int32_t>("bias_starts", {starts});
  a.logprobs = columns.of<const uint8_t>("logprobs", {rows});
  a.top_logprobs = columns.of<const int32_t>("top_logprobs", {rows});
  a.token_ids = columns.of<int32_t>("token_ids", {rows});
  a.finite = columns.of<int32_t>("finite", {rows});
  a.token_logprobs = columns.of<float>("token_logprobs", {rows});
  a.top_ids = columns.of<int32_t>("top_ids", {rows, Size::any(&a.top_width)});
  a.top_values = columns.of<float>("top_values", {rows, a.top_width});
  if (a.top_width > cuda::MAX_TOP_LOGPROBS)
    throw std::invalid_argument("Sampling: top_ids must have at most " +
                                std::to_string(cuda::MAX_TOP_LOGPROBS) + " columns, got " +
                                std::to_string(a.top_width));
  columns.refuse_others();
  device_ = columns.tensors.device();
  kept_ = columns.tensors.kept();
}

Model::Model(const Config& config, const Types& types, const py::object& weights,
             const py::object& cosines, const py::object& sines)
    : config_(config), layout_(lay_out(config, types)), layers_(config.layers) {
  Tensors tensors("Model");
  weights_ = tensors.read<const uint8_t>(weights, "weights", {static_cast<int64_t>(layout_.bytes)});
  cuda::LlamaModel& m = llama_;
  m.cosines = tensors.read<const float>(cosines, "cosines",
                                        {Size::at_least(1, &m.positions), config.head_dim / 2});
  m.sines = tensors.read<const float>(sines, "sines", {m.positions, config.head_dim / 2});
  device_ = tensors.device();
  kept_ = tensors.kept();

  m.vocab = config.vocab_size;
  m.hidden = config.hidden_size;
  m.heads = config.heads;
  m.kv_heads = config.kv_heads;
  m.head_dim = config.head_dim;
  m.ffn = config.ffn_size;
  m.norm_eps = config.norm_eps;
  m.interleaved_rope = true;  // GGUF's
  m.layer_count = config.layers;
  const auto norm = [&](const std::string& name) {
    return reinterpret_cast<const float*>(weights_ + layout_.at(name).offset);
  };
  for (int i = 0; i < config.layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    cuda::LlamaLayer& layer = layers_[i];
    fill_qkv(block, &layer);
    layer.o = packed(block + "attn_output.weight");
    layer.gate = packed(block + "ffn_gate.weight");
    layer.up = packed(block + "ffn_up.weight");
    layer.down = packed(block + "ffn_down.weight");
    layer.attention_norm = norm(block + "attn_norm.weight");
    layer.ffn_norm = norm(block + "ffn_norm.weight");
  }
  m.layers = layers_.data();
  m.embedding = packed("token_embd.weight");
  m.head = packed(config.tied_head ? "token_embd.weight" : "output.weight");
  m.output_norm = norm("output_norm.weight");
  if (const char* why = cuda::unfit(m)) throw std::invalid_argument("Model: " + std::string(why));
}

cuda::PackedMatrix Model::packed(const std::string& name) const {
  const Place& place = layout_.at(name);
  return {weights_ + place.offset, place.rows, place.cols, place.type};
}

// Neighbours of one type lie one right behind the other: one matrix.
void Model::fill_qkv(const std::string& block, cuda::LlamaLayer* layer) const {
  int parts = 0;
  for (const char* name : {"attn_q.weight", "attn_k.weight", "attn_v.weight"}) {
    const cuda::PackedMatrix next = packed(block + name);
    if (parts && layer->qkv[parts - 1].type == next.type)
      layer->qkv[parts - 1].rows += next.rows;
    else
      layer->qkv[parts++] = next;
  }
}

Matrix Model::matrix(const std::string& name) const {
  const bool is_head = config_.tied_head && name == "output.weight";
  const std::string held = is_head ? "token_embd.weight" : name;
  const auto found = layout_.places.find(held);
  if (found == layout_.places.end() || found->second.is_norm)
    throw std::invalid_argument("matrix: the model has no matrix " + name);
  return {packed(held), device_, kept_};
}

std::shared_ptr<Step> Model::plan(int slots, int max_length, int pages) const {
  const auto check = [](const char* name, int value, int most) {
    if (value < 1 || value > most)
      throw std::invalid_argument("plan: " + std::string(name) + " must be in 1.." +
                                  std::to_string(most) + ", got " + std::to_string(value));
  };
  check("slots", slots, cuda::MAX_DECODE_TOKENS);
  check("max_length", max_length, llama_.positions);
  check("pages", pages, INT_MAX);
  cuda::StepPlan plan;
  const int status = cuda::plan_step(llama_, slots, max_length, pages, processors(device_), &plan);
  if (status) throw DeviceError("plan", status);
  return std::make_shared<Step>(shared_from_this(), plan);
}

py::tuple Step::pool_shape() const {
  const cuda::LlamaModel& m = model_->llama();
  return py::make_tuple(m.layer_count, plan_.pages, 2, m.kv_heads, cuda::PAGE_POSITIONS,
                        m.head_dim);
}

void Step::bind(const py::object& pool, const py::object& workspace, const py::object& token_ids,
                const py::object& lengths, const py::object& page_table, const Sampling& sampling) {
  const cuda::LlamaModel& m = model_->llama();
  const int slots = plan_.tokens;
  Tensors tensors("bind", model_->device());
  auto* const to_pool = tensors.read<bfloat16>(
      pool, "pool", {m.layer_count, plan_.pages, 2, m.kv_heads, cuda::PAGE_POSITIONS, m.head_dim});
  auto* const to_workspace = tensors.read<uint8_t>(
      workspace, "workspace", {Size::at_least(static_cast<int64_t>(plan_.workspace_bytes))});
  cuda::StepBatch batch = {};
  batch.token_ids = tensors.read<const int32_t>(token_ids, "token_ids", {slots}, sizeof(int32_t));
  batch.lengths = tensors.read<const int32_t>(lengths, "lengths", {slots}, sizeof(int32_t));
  const int width = (plan_.max_length + cuda::PAGE_POSITIONS - 1) / cuda::PAGE_POSITIONS;
  batch.page_table = tensors.read<const int32_t>(page_table, "page_table",
                                                 {slots, Size::at_least(width, &batch.table_width)},
                                                 sizeof(int32_t));
  if (sampling.rows() != slots)
    throw std::invalid_argument("bind: sampling must have " + std::to_string(slots) +
                                " rows, got " + std::to_string(sampling.rows()));
  if (sampling.device() != model_->device())
    throw std::invalid_argument("bind: sampling must lie on device " +
                                std::to_string(model_->device()) + " as the rest, got device " +
                                std::to_string(sampling.device()));
  batch.sampling = sampling.args();
  batch_ = batch;
  pool_ = to_pool;
  workspace_ = to_workspace;
  kept_ = tensors.kept();
  kept_.add(sampling.kept());
  kept_.add(model_->kept());
}

void Step::launch(uintptr_t stream) const {
  if (!workspace_) throw std::invalid_argument("launch: bind says first where the contents lie");
  // Copies: another thread may bind anew once the GIL is released.
  const cuda::StepBatch batch = batch_;
  const Kept kept = kept_;
  bfloat16* const pool = pool_;
  uint8_t* const workspace = workspace_;
  run("launch", model_->device(), kept.regions, [&] {
    return cuda::decode_step(model_->llama(), plan_, batch, pool, workspace,
                             reinterpret_cast<cuda::Stream>(stream));
  });
}

}  // namespace servewright::cuda_module
