#include "records.h"

#include <stdexcept>

namespace servewright {
namespace {

template <class T>
T field(const py::object& owner, const char* name) {
  try {
    return owner.attr(name).cast<T>();
  } catch (const py::cast_error&) {
    throw std::invalid_argument("config: " + std::string(name) + " is " +
                                py::repr(owner.attr(name)).cast<std::string>() +
                                ", which is of the wrong type or too large");
  }
}

}  // namespace

Config read_config(const py::object& from) {
  Config config;
  config.vocab_size = field<int>(from, "vocab_size");
  config.hidden_size = field<int>(from, "hidden_size");
  config.layers = field<int>(from, "layers");
  config.heads = field<int>(from, "heads");
  config.kv_heads = field<int>(from, "kv_heads");
  config.head_dim = field<int>(from, "head_dim");
  config.ffn_size = field<int>(from, "ffn_size");
  config.norm_eps = field<float>(from, "norm_eps");
  config.rope_base = field<double>(from, "rope_base");
  config.rope_dims = field<int>(from, "rope_dims");
  config.rope_scale = field<double>(from, "rope_scale");
  const py::object factors = from.attr("rope_factors");
  if (!factors.is_none())
    for (const py::handle factor : factors) config.rope_factors.push_back(factor.cast<float>());
  config.context_length = field<int>(from, "context_length");
  config.tied_head = field<bool>(from, "tied_head");
  return config;
}

void read_sampling(const py::object& sampling, ArrayReader* arrays, StepInput* in) {
  const int n = in->samples;
  in->temperature = arrays->read<float>(sampling, "temperature", n);
  in->top_k = arrays->read<int32_t>(sampling, "top_k", n);
  in->top_p = arrays->read<float>(sampling, "top_p", n);
  in->min_p = arrays->read<float>(sampling, "min_p", n);
  in->seed = arrays->read<uint64_t>(sampling, "seed", n);
  in->draw = arrays->read<uint64_t>(sampling, "draw", n);
  in->presence = arrays->read<float>(sampling, "presence", n);
  in->frequency = arrays->read<float>(sampling, "frequency", n);
  in->repetition = arrays->read<float>(sampling, "repetition", n);
  in->history_count = in->bias_count = -1;
  in->history_ids = arrays->read<int32_t>(sampling, "history_ids", &in->history_count);
  in->history_starts = arrays->read<int32_t>(sampling, "history_starts", n + 1);
  in->history_prompts = arrays->read<int32_t>(sampling, "history_prompts", n);
  in->bias_ids = arrays->read<int32_t>(sampling, "bias_ids", &in->bias_count);
  in->bias_values = arrays->read<float>(sampling, "bias_values", in->bias_count);
  in->bias_starts = arrays->read<int32_t>(sampling, "bias_starts", n + 1);
  in->logprobs = arrays->read<uint8_t>(sampling, "logprobs", n);
  in->top_logprobs = arrays->read<int32_t>(sampling, "top_logprobs", n);
}

StepInput read_batch(const py::object& batch, ArrayReader* arrays) {
  StepInput in;
  in.tokens = in.sequences = in.samples = -1;
  in.token_ids = arrays->read<int32_t>(batch, "token_ids", &in.tokens);
  in.context_starts = arrays->read<int32_t>(batch, "context_starts", &in.sequences);
  in.seq_starts = arrays->read<int32_t>(batch, "seq_starts", in.sequences + 1);
  in.block_tables =
      arrays->read_table<int32_t>(batch, "block_tables", in.sequences, &in.table_width);
  in.sample_tokens = arrays->read<int32_t>(batch, "sample_tokens", &in.samples);
  in.return_logits = batch.attr("return_logits").cast<bool>();
  read_sampling(batch.attr("sampling"), arrays, &in);
  return in;
}

}  // namespace servewright
