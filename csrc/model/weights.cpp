#include "weights.h"

#include <cstring>
#include <stdexcept>

#include "pack.h"

namespace servewright {
namespace {

constexpr int LOAD_ROWS = 32;  // chunks of load() begin at multiples of it: whole groups
constexpr size_t ALIGNMENT = 64;

size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

}  // namespace

Weights::Weights(const Config& config, const Kernels& kernels)
    : layers(config.layers), config_(config), kernels_(kernels) {
  size_t most = 0;
  const auto matrix = [&](const std::string& name, int rows, int cols, Matrix* at) {
    Tensor& tensor = tensors_[name];
    tensor.rows = rows;
    tensor.cols = cols;
    tensor.matrix = at;
    most += padded(rows, kernels.lanes) * cols * sizeof(float) + ALIGNMENT;
  };
  const auto vector = [&](const std::string& name, int cols, const float** at) {
    Tensor& tensor = tensors_[name];
    tensor.rows = 1;
    tensor.cols = cols;
    tensor.vector = at;
    most += cols * sizeof(float) + ALIGNMENT;
  };
  const int hidden = config.hidden_size;
  matrix("token_embd.weight", config.vocab_size, hidden, &embedding);
  if (!config.tied_head) matrix("output.weight", config.vocab_size, hidden, &head);
  vector("output_norm.weight", hidden, &output_norm);
  if (!config.rope_factors.empty())
    vector("rope_freqs.weight", static_cast<int>(config.rope_factors.size()), nullptr);
  for (int l = 0; l < config.layers; ++l) {
    LayerWeights& layer = layers[l];
    const std::string prefix = "blk." + std::to_string(l) + ".";
    vector(prefix + "attn_norm.weight", hidden, &layer.attention_norm);
    matrix(prefix + "attn_q.weight", config.q_size(), hidden, &layer.q);
    matrix(prefix + "attn_k.weight", config.kv_size(), hidden, &layer.k);
    matrix(prefix + "attn_v.weight", config.kv_size(), hidden, &layer.v);
    matrix(prefix + "attn_output.weight", hidden, config.q_size(), &layer.o);
    vector(prefix + "ffn_norm.weight", hidden, &layer.ffn_norm);
    matrix(prefix + "ffn_gate.weight", config.ffn_size, hidden, &layer.gate);
    matrix(prefix + "ffn_up.weight", config.ffn_size, hidden, &layer.up);
    matrix(prefix + "ffn_down.weight", hidden, config.ffn_size, &layer.down);
  }
  arena_ = Reservation(most, true);
}

uint8_t* Weights::allocate(size_t bytes) {
  uint8_t* at = arena_.data() + used_;
  used_ += padded(bytes, ALIGNMENT);
  return at;
}

void Weights::load(const std::string& name, const std::string& type_wanted, long long first_row,
                   const uint8_t* data, long long rows, long long bytes_a_row) {
  if (is_sealed_) refuse("load(" + name + "): the weights are sealed");
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    refuse("load(" + name + "): a Llama model of this shape has no such tensor");
  Tensor& tensor = found->second;
  int type = 0;
  while (type < TENSOR_TYPES && type_wanted != type_name(TensorType(type))) ++type;
  if (type == TENSOR_TYPES || (!tensor.matrix && type != F32))
    refuse("load(" + name + "): tensor_type must be " +
           (tensor.matrix ? "F32, F16, BF16, Q8_0, Q4_0 or Q4_1" : "F32") + ", got " + type_wanted);
  if (tensor.is_begun && tensor.type != type)
    refuse("load(" + name + "): began as " + type_name(tensor.type) + ", continues as " +
           type_wanted);
  const long long wanted_bytes = static_cast<long long>(row_bytes(TensorType(type), tensor.cols));
  if (bytes_a_row != wanted_bytes)
    refuse("load(" + name + "): a row of " + std::to_string(tensor.cols) + " " + type_wanted +
           " is " + std::to_string(wanted_bytes) + " bytes, got " + std::to_string(bytes_a_row));
  if (first_row < 0 || rows < 1 || first_row > tensor.rows || rows > tensor.rows - first_row)
    refuse("load(" + name + "): rows must lie within " + std::to_string(tensor.rows) + ", got " +
           std::to_string(first_row) + ".." + std::to_string(first_row + rows));
  const bool is_last = first_row + rows == tensor.rows;
  if (first_row % LOAD_ROWS || (rows % LOAD_ROWS && !is_last))
    refuse("load(" + name + "): chunks are multiples of 32 rows but the last, got rows " +
           std::to_string(first_row) + ".." + std::to_string(first_row + rows));
  const int chunk_begin = static_cast<int>(first_row / LOAD_ROWS);
  const int chunk_end = static_cast<int>((first_row + rows + LOAD_ROWS - 1) / LOAD_ROWS);
  tensor.loaded.resize((tensor.rows + LOAD_ROWS - 1) / LOAD_ROWS);
  for (int c = chunk_begin; c < chunk_end; ++c)
    if (tensor.loaded[c])
      refuse("load(" + name + "): row " + std::to_string(c * LOAD_ROWS) + " was loaded before");

  if (!tensor.matrix && !tensor.vector) {
    if (std::memcmp(data, config_.rope_factors.data(), bytes_a_row) != 0)
      refuse("load(" + name + "): the factors differ from the config's rope_factors");
    tensor.loaded[0] = true;
    return;
  }
  if (!tensor.is_begun) {
    tensor.is_begun = true;
    tensor.type = TensorType(type);
    const size_t group = group_bytes(tensor.type, tensor.cols, kernels_.lanes);
    const size_t groups = (tensor.rows + kernels_.lanes - 1) / kernels_.lanes;
    tensor.data = allocate(tensor.matrix ? group * groups : bytes_a_row);
    if (tensor.matrix)
      *tensor.matrix = Matrix{tensor.data, group, tensor.rows, tensor.cols, tensor.type};
    else
      *tensor.vector = reinterpret_cast<const float*>(tensor.data);
  }
  if (tensor.matrix)
    pack_rows(kernels_, *tensor.matrix, tensor.data, static_cast<int>(first_row),
              static_cast<int>(rows), data);
  else
    std::memcpy(tensor.data, data, bytes_a_row);
  for (int c = chunk_begin; c < chunk_end; ++c) tensor.loaded[c] = true;
}

void Weights::seal() {
  std::string missing;
  int count = 0;
  for (const auto& [name, tensor] : tensors_) {
    bool is_whole = !tensor.loaded.empty();
    for (const bool chunk : tensor.loaded) is_whole = is_whole && chunk;
    // The factors came with the config; the tensor only repeats them.
    if (is_whole || (!tensor.matrix && !tensor.vector)) continue;
    if (++count <= 3) missing += (count > 1 ? ", " : "") + name;
  }
  if (count > 0)
    refuse("seal(): rows are missing of " + missing +
           (count > 3 ? " and " + std::to_string(count - 3) + " more tensors" : ""));
  if (config_.tied_head) head = embedding;
  is_sealed_ = true;
}

}  // namespace servewright
