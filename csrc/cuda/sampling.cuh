// Sampling: one token a row of logits, one launch, a row by one block or several
// (sampling_parts.cuh).
//
//   x_i  = logit_i + biases of i, then for i in the history: x > 0 ? x / repetition
//          : x * repetition, and for i in its output part: x - (frequency * times + presence)
//   temperature 0: the lowest id among the highest x. Else
//   w_i  = exp((x_i - max x) / temperature), kept where w_i >= min_p, then the top_k first by
//          (w descending, id ascending), then the fewest first ones with top_p of the mass
//   token = the first id whose kept masses, in ascending id, sum to more than u * (sum of all);
//          u = Philox(seed, draw)
//
// x and w are doubles with the CPU's arithmetic, operation by operation (csrc/cpu/simd.h); masses
// and what follows are integers (common/draws.h). So a row's token is a function of its logits and
// parameters: not of the block's size, of how many share it, of other rows, or of the order of
// threads.
// A row with NaN or infinity has no distribution: the lowest id among the highest numbers, and
// `finite` says 0.
//
// Layout: logits [rows, logits_stride] float32, 16-byte aligned, stride a multiple of 4, readable
// up to the stride. Workspace, in rows of ceil128(vocab): 64-bit words, the x of adjusted rows and
// then the bits of w; 32-bit counts of the history. Behind all rows what parts leave: bins, a
// block's after the other; the segments' sums or highest keys, a row's after the other.
//
// Passes over a row of V logits (4 V bytes each unless said):
//   greedy                      1. By several blocks, each its part; of a draw each block scans all
//   draw, top_k 0 and top_p 1   2, and the 256 ids around the token again
//   with top_k or top_p         2, 8 V written, then 8 V read for: edge, draw; once more for the
//                               masses when both filters are on; segments of 256 ids whose
//                               highest key is too low are left out
//   bias or penalties           12 V written (8 V without a history), x then read as 8 V
//   logprobs                    1 (sum), 3 with top n (bins, edge, list)
// Only logits come from HBM; the rest is in L2 (1 MB a row of 128 k).
#pragma once
#include "../common/step_ops.h"
#include "selection.cuh"

namespace servewright::cuda {

// exp(x) for -700 <= x <= 0, relative error below 4e-16; the CPU's polynomial with the CPU's
// roundings.
SW_DEVICE double exponential(double x) {
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  const double r = dev::fma(n, -1.9082149292705877e-10, dev::fma(n, -0.69314718036912382, x));
  double p = 1.6059043836821613e-10;
  p = dev::fma(p, r, 2.0876756987868099e-9);
  p = dev::fma(p, r, 2.5052108385441719e-8);
  p = dev::fma(p, r, 2.7557319223985891e-7);
  p = dev::fma(p, r, 2.7557319223985893e-6);
  p = dev::fma(p, r, 2.4801587301587302e-5);
  p = dev::fma(p, r, 1.9841269841269841e-4);
  p = dev::fma(p, r, 1.3888888888888889e-3);
  p = dev::fma(p, r, 8.3333333333333332e-3);
  p = dev::fma(p, r, 4.1666666666666664e-2);
  p = dev::fma(p, r, 1.6666666666666666e-1);
  p = dev::fma(p, r, 0.5);
  p = dev::fma(p, r, 1.0);
  p = dev::fma(p, r, 1.0);
  const uint64_t power = (dev::bit_cast<uint64_t>(shifted) - 0x4338000000000000u + 1023u) << 52;
  return p * dev::bit_cast<double>(power);
}

using Floats = dev::Vector<float, 4>;
using Words = dev::Vector<uint64_t, 2>;

SW_DEVICE void load_floats(const float* p, float (&x)[4]) {
  const auto raw = dev::load_vector<dev::Vector<uint32_t, 4>>(p);
  SW_UNROLL
  for (int i = 0; i < 4; ++i) x[i] = dev::bit_cast<float>(raw[i]);
}

// Where a row's workspace holds the word of an id. A warp takes 128 ids at once, a lane 4: the
// first two of all lanes lie together, then the other two, so that each of its vectors is
// contiguous.
constexpr int WORD_GROUP = 128;
SW_DEVICE int word_of(int id) {
  return (id & -WORD_GROUP) | (id & 2) << 5 | (id & (WORD_GROUP - 4)) >> 1 | (id & 1);
}
SW_DEVICE void load_words(const uint64_t* words, int id, uint64_t (&x)[4]) {
  const uint64_t* p = words + word_of(id);
  const Words a = dev::load_vector<Words>(p), b = dev::load_vector<Words>(p + WORD_GROUP / 2);
  x[0] = a[0], x[1] = a[1], x[2] = b[0], x[3] = b[1];
}
SW_DEVICE void store_words(uint64_t* words, int id, const uint64_t (&x)[4]) {
  uint64_t* p = words + word_of(id);
  dev::store_vector(p, Words{{x[0], x[1]}});
  dev::store_vector(p + WORD_GROUP / 2, Words{{x[2], x[3]}});
}

// Where x comes from: the logits, or the workspace if anything was added to them.
struct Values {
  const float* logits;
  const uint64_t* adjusted;  // bits of doubles, or null

  SW_DEVICE void four(int id, double (&x)[4]) const {
    if (adjusted) {
      uint64_t bits[4];
      load_words(adjusted, id, bits);
      SW_UNROLL
      for (int i = 0; i < 4; ++i) x[i] = dev::bit_cast<double>(bits[i]);
    } else {
      float raw[4];
      load_floats(logits + id, raw);
      SW_UNROLL
      for (int i = 0; i < 4; ++i) x[i] = static_cast<double>(raw[i]);
    }
  }
  SW_DEVICE double one(int id) const {
    return adjusted ? dev::bit_cast<double>(adjusted[word_of(id)])
                    : static_cast<double>(logits[id]);
  }
};

// x / divisor, correctly rounded, by a reciprocal that many share: two corrections by the exact
// remainder, the last from a quotient within one ulp (Markstein 1990, theorem 8.3 of his "IA-64 and
// Elementary Functions"). For quotients that are normal numbers: here they are 0 or within
// 1e-144 .. 40.
struct Divisor {
  double divisor, reciprocal;

  SW_DEVICE explicit Divisor(double divisor)
      : divisor(divisor), reciprocal(1.0 / divisor) {}
  SW_DEVICE double of(double x) const {
    double q = x * reciprocal;
    q = dev::fma(dev::fma(-divisor, q, x), reciprocal, q);
    return dev::fma(dev::fma(-divisor, q, x), reciprocal, q);
  }
};

// Keys of weights, computed where they are asked for: the bits of w, which order as w does.
struct Exponentials {
  Values values;
  double max;
  Divisor temperature;
  double nothing;  // below this many under the maximum the mass is 0, and so is the key

  SW_DEVICE Exponentials(const Values& values, double max, double temperature)
      : values(values), max(max), temperature(temperature), nothing(-32.5 * temperature) {}
  // exp(-32) < 2^-46: such a token is never drawn, and stays or goes without a trace. The range of
  // keys ends there, and the exponential, most of a draw's time, is left out.
  SW_DEVICE uint64_t key(double x) const {
    const double below = x - max;
    if (below < nothing) return 0;
    return dev::bit_cast<uint64_t>(exponential(temperature.of(below)));
  }
  SW_DEVICE void four(int id, uint64_t (&keys)[4]) const {
    double x[4];
    values.four(id, x);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) keys[i] = key(x[i]);
  }
  SW_DEVICE uint64_t one(int id) const { return key(values.one(id)); }
};

// The same, stored.
struct StoredKeys {
  const uint64_t* keys;
  SW_DEVICE void four(int id, uint64_t (&out)[4]) const { load_words(keys, id, out); }
};

// Keys of the logits themselves, above 0 for finite ones. -0 and 0 are equal.
SW_DEVICE uint64_t key_of_float(float x) {
  const uint32_t bits = dev::bit_cast<uint32_t>(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
struct LogitKeys {
  const float* logits;

  SW_DEVICE void four(int id, uint64_t (&keys)[4]) const {
    float x[4];
    load_floats(logits + id, x);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) keys[i] = key_of_float(x[i]);
  }
};

constexpr uint64_t KEY_OF_ONE = uint64_t{0x3ff} << 52;
// 32 bins an octave: 64 octaves, of which keys use 47.
SW_DEVICE Level weight_level() { return {KEY_OF_ONE, 47}; }

struct Best {  // the highest value, of these the lowest id
  double value;
  int32_t id;
};
SW_DEVICE void improve(Best& best, double value, int32_t id) {
  if (value > best.value || (value == best.value && id < best.id)) best = {value, id};
}

// A barrier comes between two calls.
SW_DEVICE Best best_of_block(Scratch& scratch, Best mine) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const double value = dev::shuffle_xor(mine.value, mask);
    const int32_t id = dev::shuffle_xor(mine.id, mask);
    improve(mine, value, id);
  }
  if (lane_index() == 0) {
    scratch.maxima[warp_index()] = mine.value;
    scratch.places[warp_index()] = mine.id;
  }
  dev::barrier();
  for (int warp = 0; warp < warp_count(); ++warp)
    improve(mine, scratch.maxima[warp], scratch.places[warp]);
  return mine;
}

SW_DEVICE Best best_value(Scratch& scratch, int vocab, const Values& values) {
  Best best = {-__builtin_huge_val(), 0};
  for (int id = static_cast<int>(dev::thread_index()) * 4; id < vocab; id += thread_count() * 4) {
    double x[4];
    values.four(id, x);
    SW_UNROLL
    for (int i = 0; i < 4; ++i)
      if (id + i < vocab) improve(best, x[i], id + i);
  }
  return best_of_block(scratch, best);
}

// A row's part of SamplingArgs.
struct RowView {
  const int32_t* history;
  const int32_t* bias_ids;
  const float* bias_values;
  int history_length, prompt_length, biases;

  SW_DEVICE RowView(const SamplingArgs& args, int row)
      : history(args.history_ids + args.history_starts[row]),
        bias_ids(args.bias_ids + args.bias_starts[row]),
        bias_values(args.bias_values + args.bias_starts[row]),
        history_length(args.history_starts[row + 1] - args.history_starts[row]),
        prompt_length(args.history_prompts[row]),
        biases(args.bias_starts[row + 1] - args.bias_starts[row]) {}
  SW_DEVICE bool is_adjusted() const { return history_length > 0 || biases > 0; }
};

// x = logit, and no token counted yet.
SW_DEVICE void start_adjusting(int vocab, const float* logits, uint64_t* x, uint32_t* counts) {
  for (int id = static_cast<int>(dev::thread_index()) * 4; id < vocab; id += thread_count() * 4) {
    float raw[4];
    load_floats(logits + id, raw);
    uint64_t bits[4];
    SW_UNROLL
    for (int i = 0; i < 4; ++i) bits[i] = dev::bit_cast<uint64_t>(static_cast<double>(raw[i]));
    store_words(x, id, bits);
    if (counts) dev::store_vector(counts + id, dev::Vector<uint32_t, 4>{{0, 0, 0, 0}});
  }
}

// Adds biases in their order: the first of equal ids does the work of all of them.
SW_DEVICE void add_biases(const RowView& row, uint64_t* x) {
  for (int i = static_cast<int>(dev::thread_index()); i < row.biases; i += thread_count()) {
    const int32_t id = row.bias_ids[i];
    bool is_first = true;
    for (int j = 0; j < i && is_first; ++j) is_first = row.bias_ids[j] != id;
    if (!is_first) continue;
    double value = dev::bit_cast<double>(x[word_of(id)]);
    for (int j = i; j < row.biases; ++j)
      if (row.bias_ids[j] == id) value += static_cast<double>(row.bias_values[j]);
    x[word_of(id)] = dev::bit_cast<uint64_t>(value);
  }
}

// Penalties of tokens in the history, once all biases are added. counts [vocab] are zero; each
// token is done by whoever takes its count first.
SW_DEVICE void penalise(const SamplingArgs& args, const RowView& row, int index, uint32_t* counts,
                        uint64_t* x) {
  constexpr uint32_t TAKEN = 0xffffffffu;
  const double repetition = args.repetition[index], frequency = args.frequency[index];
  const double presence = args.presence[index];
  const int thread = static_cast<int>(dev::thread_index());
  for (int i = row.prompt_length + thread; i < row.history_length; i += thread_count())
    dev::atomic_add_relaxed(&counts[row.history[i]], 1u);
  dev::barrier();
  for (int i = thread; i < row.history_length; i += thread_count()) {
    const int32_t id = row.history[i];
    const uint32_t count = dev::atomic_max_relaxed(&counts[id], TAKEN);
    if (count == TAKEN) continue;
    double value = dev::bit_cast<double>(x[word_of(id)]);
    value = value > 0.0 ? value / repetition : value * repetition;
    if (count > 0) value -= frequency * static_cast<double>(count) + presence;
    x[word_of(id)] = dev::bit_cast<uint64_t>(value);
  }
}

}  // namespace servewright::cuda
