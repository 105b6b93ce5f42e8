#include "step.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "../common/kernels.h"

namespace servewright {
namespace {

// Checks of one call, whose name opens every message.
class Checks {
 public:
  explicit Checks(const char* caller)
      : caller_(caller) {}

  [[noreturn]] void refuse(const char* name, long long at, const std::string& wanted,
                           const std::string& got) const {
    throw std::invalid_argument(std::string(caller_) + ": " + name + "[" + std::to_string(at) +
                                "] must be " + wanted + ", got " + got);
  }

  void range(const char* name, const int32_t* values, long long count, long long low,
             long long high) const {
    for (long long i = 0; i < count; ++i)
      if (values[i] < low || values[i] > high)
        refuse(name, i, "in " + std::to_string(low) + ".." + std::to_string(high),
               std::to_string(values[i]));
  }

  template <class Good>
  void floats(const char* name, const float* values, int count, const char* wanted,
              Good good) const {
    for (int i = 0; i < count; ++i)
      if (!(std::isfinite(values[i]) && good(values[i])))
        refuse(name, i, wanted, std::to_string(values[i]));
  }

  // starts[0] = 0, then each at least `least` above the one before, ending at `end`.
  void starts(const char* name, const int32_t* starts, int parts, int least, int end) const {
    if (starts[0] != 0) refuse(name, 0, "0", std::to_string(starts[0]));
    for (int i = 0; i < parts; ++i)
      if (starts[i + 1] < starts[i] || starts[i + 1] - starts[i] < least)
        refuse(name, i + 1, "at least " + std::to_string(static_cast<long long>(starts[i]) + least),
               std::to_string(starts[i + 1]));
    if (starts[parts] != end)
      refuse(name, parts, std::to_string(end), std::to_string(starts[parts]));
  }

 private:
  const char* caller_;
};

// What a step brings to each sequence, once its block table is known to have room for it.
std::vector<Brought> brought(const Checks& checks, const StepInput& in) {
  std::vector<Brought> parts(in.sequences);
  const long long room = static_cast<long long>(in.table_width) * KV_POSITIONS;
  for (int s = 0; s < in.sequences; ++s) {
    const long long begin = in.context_starts[s], count = in.seq_starts[s + 1] - in.seq_starts[s];
    if (begin < 0 || begin + count > room)
      checks.refuse("context_starts", s,
                    "in 0.." + std::to_string(room - count) + " (the block table holds " +
                        std::to_string(room) + " positions)",
                    std::to_string(begin));
    parts[s] = {begin, begin + count};
  }
  return parts;
}

}  // namespace

void check_pages(const char* caller, const char* name, const int32_t* tables, int width,
                 const std::vector<Brought>& parts, int pages) {
  const Checks checks(caller);
  std::vector<bool> is_written(pages, false);
  const auto refuse = [&](long long at, const std::string& wanted) {
    checks.refuse(name, at, wanted, std::to_string(tables[at]));
  };
  for (size_t s = 0; s < parts.size(); ++s) {
    const long long at = static_cast<long long>(s) * width;
    for (long long b = 0; b * KV_POSITIONS < parts[s].end; ++b) {
      const int32_t page = tables[at + b];
      if (page < 0 || page >= pages) refuse(at + b, "in 0.." + std::to_string(pages - 1));
      if ((b + 1) * KV_POSITIONS <= parts[s].begin) continue;
      if (is_written[page]) refuse(at + b, "a block that nothing else in the step writes");
      is_written[page] = true;
    }
  }
  for (size_t s = 0; s < parts.size(); ++s) {
    const long long at = static_cast<long long>(s) * width;
    for (long long b = 0; (b + 1) * KV_POSITIONS <= parts[s].begin; ++b)
      if (is_written[tables[at + b]]) refuse(at + b, "a block that nothing in the step writes");
  }
}

void check_step(const StepInput& in, const Config& config, int num_blocks) {
  const Checks checks("step");
  checks.range("token_ids", in.token_ids, in.tokens, 0, config.vocab_size - 1);
  checks.starts("seq_starts", in.seq_starts, in.sequences, 1, in.tokens);
  check_pages("step", "block_tables", in.block_tables, in.table_width, brought(checks, in),
              num_blocks);
  checks.range("sample_tokens", in.sample_tokens, in.samples, 0, in.tokens - 1);
  check_sampling("step", in, config.vocab_size);
}

void check_sampling(const char* caller, const StepInput& in, int vocab) {
  const Checks checks(caller);
  const int last_id = vocab - 1;
  checks.floats("temperature", in.temperature, in.samples, "finite and at least 0",
                [](float x) { return x >= 0.0f; });
  checks.range("top_k", in.top_k, in.samples, 0, INT32_MAX);
  checks.floats("top_p", in.top_p, in.samples, "above 0 and at most 1",
                [](float x) { return x > 0.0f && x <= 1.0f; });
  checks.floats("min_p", in.min_p, in.samples, "in 0..1",
                [](float x) { return x >= 0.0f && x <= 1.0f; });
  checks.floats("presence", in.presence, in.samples, "finite", [](float) { return true; });
  checks.floats("frequency", in.frequency, in.samples, "finite", [](float) { return true; });
  checks.floats("repetition", in.repetition, in.samples, "finite and above 0",
                [](float x) { return x > 0.0f; });
  checks.range("history_ids", in.history_ids, in.history_count, 0, last_id);
  checks.starts("history_starts", in.history_starts, in.samples, 0, in.history_count);
  for (int i = 0; i < in.samples; ++i) {
    const int length = in.history_starts[i + 1] - in.history_starts[i];
    if (in.history_prompts[i] < 0 || in.history_prompts[i] > length)
      checks.refuse("history_prompts", i, "in 0.." + std::to_string(length),
                    std::to_string(in.history_prompts[i]));
  }
  checks.range("bias_ids", in.bias_ids, in.bias_count, 0, last_id);
  checks.floats("bias_values", in.bias_values, in.bias_count, "finite", [](float) { return true; });
  checks.starts("bias_starts", in.bias_starts, in.samples, 0, in.bias_count);
  for (int i = 0; i < in.samples; ++i)
    if (in.logprobs[i] > 1) checks.refuse("logprobs", i, "0 or 1", std::to_string(in.logprobs[i]));
  checks.range("top_logprobs", in.top_logprobs, in.samples, 0, vocab);
}

}  // namespace servewright
