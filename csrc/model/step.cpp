#include "step.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "../common/kernels.h"

namespace servewright {
namespace {

[[noreturn]] void refuse(const char* name, long long at, const std::string& wanted,
                         const std::string& got) {
  throw std::invalid_argument("step: " + std::string(name) + "[" + std::to_string(at) +
                              "] must be " + wanted + ", got " + got);
}

void check_range(const char* name, const int32_t* values, long long count, long long low,
                 long long high) {
  for (long long i = 0; i < count; ++i)
    if (values[i] < low || values[i] > high)
      refuse(name, i, "in " + std::to_string(low) + ".." + std::to_string(high),
             std::to_string(values[i]));
}

template <class Good>
void check_floats(const char* name, const float* values, int count, const char* wanted, Good good) {
  for (int i = 0; i < count; ++i)
    if (!(std::isfinite(values[i]) && good(values[i])))
      refuse(name, i, wanted, std::to_string(values[i]));
}

// starts[0] = 0, then each at least `least` above the one before, ending at `end`.
void check_starts(const char* name, const int32_t* starts, int parts, int least, int end) {
  if (starts[0] != 0) refuse(name, 0, "0", std::to_string(starts[0]));
  for (int i = 0; i < parts; ++i)
    if (starts[i + 1] < starts[i] || starts[i + 1] - starts[i] < least)
      refuse(name, i + 1, "at least " + std::to_string(static_cast<long long>(starts[i]) + least),
             std::to_string(starts[i + 1]));
  if (starts[parts] != end) refuse(name, parts, std::to_string(end), std::to_string(starts[parts]));
}

void check_blocks(const StepInput& in, int num_blocks) {
  // Which sequence writes a block (or -1).
  std::vector<int32_t> writer(num_blocks, -1);
  for (int s = 0; s < in.sequences; ++s) {
    const int32_t* table = in.block_tables + static_cast<size_t>(s) * in.table_width;
    const long long at = static_cast<long long>(s) * in.table_width;
    const long long begin = in.context_starts[s];
    const long long end = begin + in.seq_starts[s + 1] - in.seq_starts[s];
    const long long room = static_cast<long long>(in.table_width) * KV_POSITIONS;
    if (begin < 0 || end > room)
      refuse("context_starts", s,
             "in 0.." + std::to_string(room - (end - begin)) + " (the block table holds " +
                 std::to_string(room) + " positions)",
             std::to_string(begin));
    for (long long b = 0; b * KV_POSITIONS < end; ++b) {
      if (table[b] < 0 || table[b] >= num_blocks)
        refuse("block_tables", at + b, "in 0.." + std::to_string(num_blocks - 1),
               std::to_string(table[b]));
      if ((b + 1) * KV_POSITIONS <= begin) continue;
      if (writer[table[b]] >= 0)
        refuse("block_tables", at + b, "a block that nothing else in the step writes",
               std::to_string(table[b]));
      writer[table[b]] = s;
    }
  }
  for (int s = 0; s < in.sequences; ++s) {
    const int32_t* table = in.block_tables + static_cast<size_t>(s) * in.table_width;
    for (long long b = 0; (b + 1) * KV_POSITIONS <= in.context_starts[s]; ++b)
      if (writer[table[b]] >= 0)
        refuse("block_tables", static_cast<long long>(s) * in.table_width + b,
               "a block that nothing in the step writes", std::to_string(table[b]));
  }
}

}  // namespace

void check_step(const StepInput& in, const Config& config, int num_blocks) {
  const int last_id = config.vocab_size - 1;
  check_range("token_ids", in.token_ids, in.tokens, 0, last_id);
  check_starts("seq_starts", in.seq_starts, in.sequences, 1, in.tokens);
  check_blocks(in, num_blocks);
  check_range("sample_tokens", in.sample_tokens, in.samples, 0, in.tokens - 1);

  check_floats("temperature", in.temperature, in.samples, "finite and at least 0",
               [](float x) { return x >= 0.0f; });
  check_range("top_k", in.top_k, in.samples, 0, INT32_MAX);
  check_floats("top_p", in.top_p, in.samples, "above 0 and at most 1",
               [](float x) { return x > 0.0f && x <= 1.0f; });
  check_floats("min_p", in.min_p, in.samples, "in 0..1",
               [](float x) { return x >= 0.0f && x <= 1.0f; });
  check_floats("presence", in.presence, in.samples, "finite", [](float) { return true; });
  check_floats("frequency", in.frequency, in.samples, "finite", [](float) { return true; });
  check_floats("repetition", in.repetition, in.samples, "finite and above 0",
               [](float x) { return x > 0.0f; });
  check_range("history_ids", in.history_ids, in.history_count, 0, last_id);
  check_starts("history_starts", in.history_starts, in.samples, 0, in.history_count);
  for (int i = 0; i < in.samples; ++i) {
    const int length = in.history_starts[i + 1] - in.history_starts[i];
    if (in.history_prompts[i] < 0 || in.history_prompts[i] > length)
      refuse("history_prompts", i, "in 0.." + std::to_string(length),
             std::to_string(in.history_prompts[i]));
  }
  check_range("bias_ids", in.bias_ids, in.bias_count, 0, last_id);
  check_floats("bias_values", in.bias_values, in.bias_count, "finite", [](float) { return true; });
  check_starts("bias_starts", in.bias_starts, in.samples, 0, in.bias_count);
  for (int i = 0; i < in.samples; ++i)
    if (in.logprobs[i] > 1) refuse("logprobs", i, "0 or 1", std::to_string(in.logprobs[i]));
  check_range("top_logprobs", in.top_logprobs, in.samples, 0, config.vocab_size);
}

}  // namespace servewright
