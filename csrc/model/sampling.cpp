#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace servewright {
namespace {

// Weights are in [0, 1]. Buckets split them by exponent and three bits of mantissa, in descending
// order; the last takes all below 2^-64. A filter's edge falls into one bucket, and only that one
// is sorted.
constexpr int BUCKETS = 64 * 8 + 2;

int bucket_of(double weight) {
  uint64_t bits;
  std::memcpy(&bits, &weight, 8);
  const uint64_t one = uint64_t{1023} << 3;
  const uint64_t place = bits >> 49;
  if (place >= one) return 0;  // 1.0
  return static_cast<int>(std::min<uint64_t>(one - place, BUCKETS - 1));
}

constexpr int SUM_IDS = 256;  // ids summed apart, so that the draw looks into one of them

}  // namespace

double uniform(uint64_t seed, uint64_t draw) {
  uint32_t c[4] = {static_cast<uint32_t>(draw), static_cast<uint32_t>(draw >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
        static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, c);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return static_cast<double>((c[0] | uint64_t{c[1]} << 32) >> 11) * 0x1p-53;
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
  return invert(filter(row), uniform(row.seed, row.draw));
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
  double mass[BUCKETS] = {};
  int count[BUCKETS] = {};
  for (const double w : weights_) {
    if (!(w >= kept.weight)) continue;
    const int b = bucket_of(w);
    mass[b] += w;
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
      mass[b] = 0.0;
      for (int i = 0; i < row.top_k - before; ++i) mass[b] -= bucket_[i].first;
    }
  }
  if (row.top_p < 1.0f) {
    double total = 0.0;
    for (int b = 0; b <= last; ++b) total += mass[b];
    const double wanted = double(row.top_p) * total;
    double before = 0.0;
    int b = 0;
    while (b < last && before + mass[b] < wanted) before += mass[b++];
    sort_bucket(b);
    for (const auto& [negative, id] : bucket_) {
      before -= negative;
      if (before < wanted) continue;
      return Kept{-negative, id};
    }
  }
  return kept;
}

// The first id in ascending order whose cumulative kept weight exceeds u * total.
int32_t Sampler::invert(const Kept& kept, double u) {
  const auto weight = [&](int id) {
    const double w = weights_[id];
    return w > kept.weight || (w == kept.weight && id <= kept.id) ? w : 0.0;
  };
  const auto sum = [&](int begin, int end) {
    double part[4] = {};
    int id = begin;
    for (; id + 4 <= end; id += 4)
      for (int j = 0; j < 4; ++j) part[j] += weight(id + j);
    for (; id < end; ++id) part[0] += weight(id);
    return (part[0] + part[1]) + (part[2] + part[3]);
  };
  double total = 0.0;
  for (size_t s = 0; s < sums_.size(); ++s) {
    const int begin = static_cast<int>(s) * SUM_IDS;
    sums_[s] = sum(begin, std::min(begin + SUM_IDS, vocab_));
    total += sums_[s];
  }
  double rest = u * total;
  int32_t last = 0;
  for (size_t s = 0; s < sums_.size(); ++s) {
    const int begin = static_cast<int>(s) * SUM_IDS, end = std::min(begin + SUM_IDS, vocab_);
    if (rest >= sums_[s]) {
      rest -= sums_[s];
      if (s + 1 < sums_.size()) continue;
    }
    for (int id = begin; id < end; ++id) {
      const double w = weight(id);
      if (w > 0.0) last = id;
      if (rest < w) return id;
      rest -= w;
    }
    // Rounding put the place at the very end of these ids: their last kept one, if there is any.
    if (last >= begin) return last;
  }
  for (int id = vocab_ - 1; id >= 0; --id)
    if (weight(id) > 0.0) return id;
  return last;
}

void Sampler::logprobs(const float* logits, const ScanResult& scan, const SamplingRow& row,
                       int32_t token, float* logprob, int32_t* top_ids, float* top_logprobs) {
  std::copy(logits, logits + vocab_, weights_.begin());
  kernels_.exponentials(weights_.data(), vocab_, scan.max, 1.0);
  double total = 0.0;
  for (const double w : weights_) total += w;
  const double log_total = std::log(total);
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
