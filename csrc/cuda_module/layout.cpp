#include "layout.h"

#include <stdexcept>
#include <vector>

#include "../cuda/weights.h"

namespace servewright::cuda_module {
namespace {

constexpr size_t ALIGNMENT = 256;
constexpr int MAX_GROUP = 8;  // query heads that share a KV head

struct Tensor {
  std::string name;
  int rows, cols;
  bool is_norm;
  bool follows;  // may lie right behind the one before it
};

// In the order in which they lie.
std::vector<Tensor> tensors_of(const Config& config) {
  const int hidden = config.hidden_size, q = config.q_size(), kv = config.kv_size();
  std::vector<Tensor> all = {{"token_embd.weight", config.vocab_size, hidden, false, false}};
  for (int i = 0; i < config.layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    all.push_back({block + "attn_norm.weight", 1, hidden, true, false});
    all.push_back({block + "attn_q.weight", q, hidden, false, false});
    all.push_back({block + "attn_k.weight", kv, hidden, false, true});
    all.push_back({block + "attn_v.weight", kv, hidden, false, true});
    all.push_back({block + "attn_output.weight", hidden, q, false, false});
    all.push_back({block + "ffn_norm.weight", 1, hidden, true, false});
    all.push_back({block + "ffn_gate.weight", config.ffn_size, hidden, false, false});
    all.push_back({block + "ffn_up.weight", config.ffn_size, hidden, false, false});
    all.push_back({block + "ffn_down.weight", hidden, config.ffn_size, false, false});
  }
  all.push_back({"output_norm.weight", 1, hidden, true, false});
  if (!config.tied_head) all.push_back({"output.weight", config.vocab_size, hidden, false, false});
  return all;
}

std::string unfit(const Tensor& tensor, const Types& types) {
  const auto found = types.find(tensor.name);
  if (found == types.end()) return "the tensor " + tensor.name + " is missing.";
  const std::string& type = found->second;
  cuda::Weight weight;
  if (tensor.is_norm ? type == "F32" : read_weight(type, &weight)) return "";
  return "the tensor " + tensor.name + " has the type " + type + ", but the CUDA kernels read " +
         (tensor.is_norm ? "norms of F32." : std::string(WEIGHT_LIST) + ".");
}

}  // namespace

bool read_weight(const std::string& name, cuda::Weight* type) {
  for (int i = 0; i < 4; ++i) {
    if (name != WEIGHT_NAMES[i]) continue;
    *type = static_cast<cuda::Weight>(i);
    return true;
  }
  return false;
}

cuda::Weight weight_type(const char* caller, const std::string& name) {
  cuda::Weight type;
  if (read_weight(name, &type)) return type;
  throw std::invalid_argument(std::string(caller) + ": tensor_type must be " + WEIGHT_LIST +
                              ", got " + name);
}

std::string unfit(const Config& config, const Types& types) {
  if (std::string why = servewright::unfit(config); !why.empty()) return why + ".";
  if (config.head_dim != 64 && config.head_dim != 128)
    return "the CUDA kernels want head_dim 64 or 128, got " + std::to_string(config.head_dim) + ".";
  if (config.heads / config.kv_heads > MAX_GROUP)
    return "the CUDA kernels want at most 8 query heads for a KV head, got " +
           std::to_string(config.heads / config.kv_heads) + ".";
  if (config.vocab_size > cuda::MAX_SAMPLING_VOCAB)
    return "the CUDA kernels want a vocab_size of at most " +
           std::to_string(cuda::MAX_SAMPLING_VOCAB) + ", got " + std::to_string(config.vocab_size) +
           ".";
  std::map<std::string, bool> known;
  for (const Tensor& tensor : tensors_of(config)) {
    if (std::string why = unfit(tensor, types); !why.empty()) return why;
    known[tensor.name] = true;
  }
  if (!config.rope_factors.empty()) known["rope_freqs.weight"] = true;
  for (const auto& [name, type] : types)
    if (!known.count(name)) return "a Llama model of this shape has no tensor " + name + ".";
  for (int i = 0; i < config.layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    const std::string gate = block + "ffn_gate.weight", up = block + "ffn_up.weight";
    if (types.at(gate) != types.at(up))
      return gate + " has the type " + types.at(gate) + " and " + up + " has " + types.at(up) +
             ", but one CUDA kernel computes both and wants one type.";
  }
  return "";
}

Layout lay_out(const Config& config, const Types& types) {
  if (const std::string why = unfit(config, types); !why.empty())
    throw std::invalid_argument("layout: " + why);
  Layout layout;
  std::string before;  // type of the matrix in front
  for (const Tensor& tensor : tensors_of(config)) {
    const std::string& type = types.at(tensor.name);
    Place place = {0, sizeof(float) * tensor.cols, tensor.rows, tensor.cols, tensor.is_norm, {}};
    if (!tensor.is_norm && read_weight(type, &place.type))
      place.bytes = cuda::packed_bytes(place.type, tensor.rows, tensor.cols);
    if (!(tensor.follows && type == before))
      layout.bytes = (layout.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    place.offset = layout.bytes;
    layout.bytes += place.bytes;
    layout.places[tensor.name] = place;
    before = type;
  }
  return layout;
}

}  // namespace servewright::cuda_module
