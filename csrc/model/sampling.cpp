#include "sampling.h"

#include <algorithm>
#include <cmath>

#include "../common/draws.h"

namespace servewright {
namespace {

// Weights are in [0, 1]. Buckets split them by exponent and three bits of mantissa, in descending
// order; the last takes all below 2^-64. A filter's edge falls into one bucket, and only that one
// is sorted.
constexpr int BUCKETS = 64 * 8 + 2;

int bucket_of(double weight) {
  const uint64_t one = uint64_t{1023} << 3;
  const uint64_t place = bits_of(weight) >> 49;
  if (place >= one) return 0;  // 1.0
  return static_cast<int>(std::min<uint64_t>(one - place, BUCKETS - 1));
}

constexpr int SUM_IDS = 256;  // ids summed apart, so that the draw looks into one of them

}  // namespace

SamplingRow sampling_row(const StepInput& in, int row) {
  const int32_t history = in.history_starts[row], bias = in.bias_starts[row];
  return {in.temperature[row],
          in.top_p[row],
          in.min_p[row],
          in.presence[row],
          in.frequency[row],
          in.repetition[row],
          in.top_k[row],
          in.seed[row],
          in.draw[row],
          in.history_ids + history,
          in.history_starts[row + 1] - history,
          in.history_prompts[row],
          in.bias_ids + bias,
          in.bias_values + bias,
          in.bias_starts[row + 1] - bias,
          in.logprobs[row] != 0,
          in.top_logprobs[row]};
}

double uniform(uint64_t seed, uint64_t draw) {
  return static_cast<double>(random_bits(seed, draw)) * 0x1p-53;
}

Sampler::Sampler(const Kernels& kernels, int vocab)
    : kernels_(kernels), vocab_(vocab), weights_(vocab), counts_(vocab), ids_(vocab) {
  bucket_.reserve(vocab);
  sums_.resize((vocab + SUM_IDS - 1) / SUM_IDS);
}

int32_t Sampler::draw(const float* logits, const ScanResult& scan, const SamplingRow& row) {
  // With NaN or infinity there is no distribution; the step tells so by `finite`.
  const bool is_adjusted = row.biases > 0 || row.history_length > 0;
  if (!scan.finite || (row.temperature == 0.0f && !is_adjusted)) return scan.argmax;
  std::copy(logits, logits + vocab_, weights_.begin());
  double max = scan.max;
  if (is_adjusted) {
    adjust(row);
    const auto best = std::max_element(weights_.begin(), weights_.end());
    if (row.temperature == 0.0f) return static_cast<int32_t>(best - weights_.begin());
    max = *best;
  }
  kernels_.exponentials(weights_.data(), vocab_, max, row.temperature);
  return invert(filter(row), random_bits(row.seed, row.draw));
}

void Sampler::adjust(const SamplingRow& row) {
  for (int i = 0; i < row.biases; ++i) weights_[row.bias_ids[i]] += row.bias_values[i];
  if (row.history_length == 0) return;
  // counts: 0 not seen, 1 seen in the prompt alone, 1 + n seen n times in the output.
  for (int i = 0; i < row.history_length; ++i) {
    int32_t& count = counts_[row.history[i]];
    if (count == 0) count = 1;
    if (i >= row.prompt_length) ++count;
  }
  for (int i = 0; i < row.history_length; ++i) {
    int32_t& count = counts_[row.history[i]];
    if (count == 0) continue;  // done at an earlier place
    double& x = weights_[row.history[i]];
    x = x > 0.0 ? x / row.repetition : x * row.repetition;
    if (count > 1) x -= double(row.frequency) * (count - 1) + row.presence;
    count = 0;
  }
}

Sampler::Kept Sampler::filter(const SamplingRow& row) {
  Kept kept{row.min_p, vocab_};
  if (row.top_k == 0 && row.top_p >= 1.0f) return kept;
  uint64_t mass[BUCKETS] = {};
  int count[BUCKETS] = {};
  for (const double w : weights_) {
    if (!(w >= kept.weight)) continue;
    const int b = bucket_of(w);
    mass[b] += mass_of(w);
    ++count[b];
  }
  // Best first, the lowest id among equals.
  const auto sort_bucket = [&](int bucket) {
    bucket_.clear();
    for (int id = 0; id < vocab_; ++id) {
      const double w = weights_[id];
      if (bucket_of(w) == bucket && (w > kept.weight || (w == kept.weight && id <= kept.id)))
        bucket_.emplace_back(-w, id);
    }
    std::sort(bucket_.begin(), bucket_.end());
  };
  int last = BUCKETS - 1;
  if (row.top_k > 0) {
    int before = 0, b = 0;
    while (b < BUCKETS && before + count[b] < row.top_k) before += count[b++];
    if (b < BUCKETS) {
      sort_bucket(b);
      const auto& edge = bucket_[row.top_k - before - 1];
      kept = Kept{-edge.first, edge.second};
      last = b;
      mass[b] = 0;
      for (int i = 0; i < row.top_k - before; ++i) mass[b] += mass_of(-bucket_[i].first);
    }
  }
  if (row.top_p < 1.0f) {
    uint64_t total = 0;
    for (int b = 0; b <= last; ++b) total += mass[b];
    const uint64_t wanted = wanted_of(row.top_p, total);
    uint64_t before = 0;
    int b = 0;
    while (before + mass[b] < wanted) before += mass[b++];
    sort_bucket(b);
    for (const auto& [negative, id] : bucket_) {
      before += mass_of(-negative);
      if (before >= wanted) return Kept{-negative, id};
    }
  }
  return kept;
}

// The first id in ascending order whose cumulative kept mass exceeds u * total.
int32_t Sampler::invert(const Kept& kept, uint64_t random53) {
  const auto mass = [&](int id) {
    const double w = weights_[id];
    return w > kept.weight || (w == kept.weight && id <= kept.id) ? mass_of(w) : 0;
  };
  uint64_t total = 0;
  for (size_t s = 0; s < sums_.size(); ++s) {
    const int begin = static_cast<int>(s) * SUM_IDS, end = std::min(begin + SUM_IDS, vocab_);
    sums_[s] = 0;
    for (int id = begin; id < end; ++id) sums_[s] += mass(id);
    total += sums_[s];
  }
  uint64_t rest = place_of(random53, total);  // below the total: the loops end in an id
  int32_t id = 0;
  for (const uint64_t sum : sums_) {
    if (rest < sum) break;
    rest -= sum;
    id += SUM_IDS;
  }
  while (rest >= mass(id)) rest -= mass(id++);
  return id;
}

void Sampler::logprobs(const float* logits, const ScanResult& scan, const SamplingRow& row,
                       int32_t token, float* logprob, int32_t* top_ids, float* top_logprobs) {
  std::copy(logits, logits + vocab_, weights_.begin());
  kernels_.exponentials(weights_.data(), vocab_, scan.max, 1.0);
  uint64_t total = 0;
  for (const double w : weights_) total += mass_of(w);
  const double log_total = std::log(static_cast<double>(total) * 0x1p-45);
  const auto of = [&](int32_t id) {
    return static_cast<float>(double(logits[id]) - double(scan.max) - log_total);
  };
  *logprob = of(token);
  if (row.top_logprobs == 0) return;
  for (int id = 0; id < vocab_; ++id) ids_[id] = id;
  // NaN has no order; such a step is reported by `finite` and its logprobs mean nothing.
  if (scan.finite)
    std::partial_sort(ids_.begin(), ids_.begin() + row.top_logprobs, ids_.end(),
                      [&](int32_t a, int32_t b) {
                        return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
                      });
  for (int i = 0; i < row.top_logprobs; ++i) {
    top_ids[i] = ids_[i];
    top_logprobs[i] = of(ids_[i]);
  }
}

}  // namespace servewright
