// One launch draws a token for every row; sampling.cuh has the formula, the layout and the bytes.
#include "sampling.cuh"

namespace servewright::cuda {
namespace {

// 16 warps: 4 for each scheduler, of 4 exponentials each, hide the latency of double arithmetic,
// and 512 threads leave each the registers it needs: with 32 warps 680 bytes were spilled.
constexpr int THREADS = MAX_WARPS * 32;
constexpr int SMALL_VOCAB = 4096;
static_assert(MAX_TOP_LOGPROBS <= 32, "a small block has 32 groups of four threads");
constexpr int SMALL_THREADS = 128;  // rows of few tokens wait for barriers alone

// Words of a row in the workspace.
SW_ANY size_t stride_of(int vocab) {
  return (static_cast<size_t>(vocab) + WORD_GROUP - 1) / WORD_GROUP * WORD_GROUP;
}

constexpr int SCAN_LOADS = 4;  // in flight a thread: 32 KB of the SM's, what its share of L2 needs

struct Scan {
  float max;
  int32_t argmax;
  bool is_finite;
  uint64_t top;  // this thread's own highest key, 0 without a token
  int32_t top_id;
};

// The highest logit of a row, and whether all are finite.
SW_DEVICE Scan scan_row(Scratch& scratch, int vocab, const float* logits) {
  float max = -__builtin_huge_valf();
  int32_t argmax = 0;
  uint32_t largest = 0;  // bits of a magnitude: those of infinity or more are not finite
  const int first = static_cast<int>(dev::thread_index()) * 4, step = thread_count() * 4;
  for (int begin = first; begin < vocab; begin += SCAN_LOADS * step) {
    float x[SCAN_LOADS][4];
    SW_UNROLL
    for (int load = 0; load < SCAN_LOADS; ++load)
      if (begin + load * step < vocab) load_floats(logits + begin + load * step, x[load]);
    SW_UNROLL
    for (int i = 0; i < SCAN_LOADS * 4; ++i) {
      const int id = begin + i / 4 * step + i % 4;
      if (id >= vocab) continue;
      const float value = x[i / 4][i % 4];
      largest = dev::maximum(largest, dev::bit_cast<uint32_t>(value) & 0x7fffffffu);
      if (!(value > max)) continue;
      max = value;
      argmax = id;
    }
  }
  const bool is_odd = dev::vote_any(largest >= 0x7f800000u);
  if (lane_index() == 0) scratch.flags[warp_index()] = is_odd;
  const Best best = best_of_block(scratch, {static_cast<double>(max), argmax});
  uint32_t odd = 0;
  for (int warp = 0; warp < warp_count(); ++warp) odd |= scratch.flags[warp];
  return {static_cast<float>(best.value), best.id, odd == 0, first < vocab ? key_of_float(max) : 0,
          argmax};
}

// Keys of the weights, and the bins of the first filter; without filters sums of segments instead.
// The caller waits.
SW_DEVICE void weigh(Scratch& scratch, int vocab, const Exponentials& weights, uint64_t min_key,
                     const Rule& rule, uint64_t* keys) {
  const Level level = weight_level();
  for (int first = warp_index() * SEGMENT; first < vocab; first += warp_count() * SEGMENT) {
    uint64_t sum = 0;
    for (int id = first + lane_index() * 4; id < dev::minimum(first + SEGMENT, vocab);
         id += SEGMENT / 2) {
      uint64_t four[4];
      weights.four(id, four);
      if (keys) store_words(keys, id, four);
      SW_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (id + i >= vocab || four[i] < min_key) continue;
        const uint64_t measure = rule.measure(four[i]);
        sum += measure;
        if (keys) count_key(scratch, level, four[i], measure);
      }
    }
    if (keys) continue;
    sum = sum_over_warp(sum);
    if (lane_index() == 0) scratch.sums[first / SEGMENT] = sum;
  }
}

SW_DEVICE void sum_segments(Scratch& scratch, int vocab, const StoredKeys& stored,
                            const Edge& kept) {
  for (int first = warp_index() * SEGMENT; first < vocab; first += warp_count() * SEGMENT) {
    uint64_t sum = 0;
    SW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int id = first + half * (SEGMENT / 2) + lane_index() * 4;
      if (id >= vocab) continue;
      uint64_t four[4];
      stored.four(id, four);
      SW_UNROLL
      for (int i = 0; i < 4; ++i)
        if (id + i < vocab && is_kept(kept, four[i], id + i))
          sum += mass_of(dev::bit_cast<double>(four[i]));
    }
    sum = sum_over_warp(sum);
    if (lane_index() == 0) scratch.sums[first / SEGMENT] = sum;
  }
  dev::barrier();
}

SW_DEVICE int32_t draw_token(Scratch& scratch, const SamplingArgs& args, int row,
                             const Exponentials& weights, uint64_t* workspace) {
  const int vocab = args.vocab;
  Rule rule = {false, static_cast<uint64_t>(args.top_k[row]), args.top_p[row]};
  // Of the two filters, top_k and top_p, those from `filter` to `last` are on.
  int filter = rule.count > 0 ? 0 : 1;
  const int last = rule.top_p < 1.0f ? 1 : 0;
  uint64_t* keys = filter <= last ? workspace : nullptr;
  Edge kept = {dev::bit_cast<uint64_t>(static_cast<double>(args.min_p[row])), vocab};
  if (keys) clear_bins(scratch);
  rule.is_by_mass = filter == 1;
  weigh(scratch, vocab, weights, kept.key, rule, keys);
  if (keys) {
    const StoredKeys stored = {keys};
    for (bool is_counted = true; filter <= last; ++filter, is_counted = false) {
      rule.is_by_mass = filter == 1;
      kept = select(scratch, vocab, stored, kept, weight_level(), rule, is_counted);
    }
    sum_segments(scratch, vocab, stored, kept);
  } else {
    dev::barrier();
  }
  const uint64_t total =
      total_of(scratch, segments_of(vocab), [&](int i) { return scratch.sums[i]; });
  const uint64_t place = place_of(random_bits(args.seed[row], args.draw[row]), total);
  return find_id(scratch, vocab, place, [&](int id) -> uint64_t {
    const uint64_t key = keys ? keys[word_of(id)] : weights.one(id);
    return is_kept(kept, key, id) ? mass_of(dev::bit_cast<double>(key)) : 0;
  });
}

SW_DEVICE int32_t choose(Scratch& scratch, const SamplingArgs& args, int row, const Scan& scan,
                         uint64_t* workspace, uint32_t* counts) {
  const RowView view(args, row);
  const double temperature = args.temperature[row];
  const bool is_adjusted = view.history_length > 0 || view.biases > 0;
  if (!scan.is_finite || (temperature == 0.0 && !is_adjusted)) return scan.argmax;
  const float* logits = args.logits + size_t(row) * args.logits_stride;
  const Values values = {logits, is_adjusted ? workspace : nullptr};
  double max = static_cast<double>(scan.max);
  if (is_adjusted) {
    start_adjusting(args.vocab, logits, workspace, view.history_length > 0 ? counts : nullptr);
    dev::barrier();
    add_biases(view, workspace);
    penalise(args, view, row, counts, workspace);
    dev::barrier();
    const Best best = best_value(scratch, args.vocab, values);
    if (temperature == 0.0) return best.id;
    max = best.value;
  }
  return draw_token(scratch, args, row, Exponentials(values, max, temperature), workspace);
}

// log(sum of exp(logit - max)) of a row.
SW_DEVICE double log_total_of(Scratch& scratch, int vocab, const Exponentials& weights) {
  uint64_t sum = 0;
  for (int id = static_cast<int>(dev::thread_index()) * 4; id < vocab; id += thread_count() * 4) {
    uint64_t keys[4];
    weights.four(id, keys);
    SW_UNROLL
    for (int i = 0; i < 4; ++i)
      if (id + i < vocab) sum += mass_of(dev::bit_cast<double>(keys[i]));
  }
  const uint64_t total = sum_over_block(scratch, sum);
  return dev::log(static_cast<double>(total) * 0x1p-45);
}

// Gathers the tokens that may be among the `count` best: every four threads know the best of what
// they have scanned, and the tokens down to the count-th of these are at least as many. Where few
// threads hold so many of them that there is no room, returns more than GATHERED.
SW_DEVICE int gather_best(Scratch& scratch, int vocab, const LogitKeys& keys, const Scan& scan,
                          int count) {
  const int thread = static_cast<int>(dev::thread_index()), groups = thread_count() / 4;
  uint64_t key = scan.top;
  int32_t id = scan.top_id;
  for (int mask = 1; mask < 4; mask *= 2) {
    const uint64_t other = dev::shuffle_xor(key, mask);
    const int32_t other_id = dev::shuffle_xor(id, mask);
    if (other < key || (other == key && other_id > id)) continue;
    key = other;
    id = other_id;
  }
  if (thread % 4 == 0) {
    scratch.keys[thread / 4] = key;
    scratch.ids[thread / 4] = id;
  }
  if (thread == 0) scratch.edge = {1, vocab};
  dev::barrier();
  if (thread < groups && scratch.keys[thread] > 0) {
    int place = 0;
    for (int other = 0; other < groups; ++other) place += is_better(scratch, other, thread);
    if (place == count - 1) scratch.edge = {scratch.keys[thread], scratch.ids[thread]};
  }
  dev::barrier();
  const Edge edge = scratch.edge;
  return gather(scratch, vocab, keys, edge.key, ~uint64_t{0},
                [&](int32_t i, uint64_t key_i) { return is_kept(edge, key_i, i) ? key_i : 0; });
}

// log softmax of the raw logits: of the token, and of the best.
SW_DEVICE void write_logprobs(Scratch& scratch, const SamplingArgs& args, int row, const Scan& scan,
                              int32_t token) {
  const int vocab = args.vocab, thread = static_cast<int>(dev::thread_index());
  const float* logits = args.logits + size_t(row) * args.logits_stride;
  const int count = dev::minimum(dev::minimum(args.top_logprobs[row], args.top_width),
                                 dev::minimum(vocab, MAX_TOP_LOGPROBS));
  int32_t* top_ids = args.top_ids + size_t(row) * args.top_width;
  float* top_values = args.top_values + size_t(row) * args.top_width;
  if (!scan.is_finite) {
    const float nan = __builtin_nanf("");
    if (thread == 0) args.token_logprobs[row] = nan;
    if (thread < count) {
      top_ids[thread] = thread;
      top_values[thread] = nan;
    }
    return;
  }
  const double max = static_cast<double>(scan.max);
  const double log_total =
      log_total_of(scratch, vocab, Exponentials(Values{logits, nullptr}, max, 1.0));
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[id]) - max - log_total);
  };
  if (thread == 0) args.token_logprobs[row] = logprob(token);
  if (count == 0) return;
  const auto write = [&](int place, int32_t id) {
    top_ids[place] = id;
    top_values[place] = logprob(id);
  };
  const LogitKeys keys = {logits};
  const int gathered = gather_best(scratch, vocab, keys, scan, count);
  if (gathered <= GATHERED) {
    for (int i = thread; i < gathered; i += thread_count()) {
      int place = 0;
      for (int j = 0; j < gathered; ++j) place += is_better(scratch, j, i);
      if (place < count) write(place, scratch.ids[i]);
    }
    return;
  }
  // One after the other, each the best behind the one before.
  Best last = {__builtin_huge_val(), -1};
  for (int place = 0; place < count; ++place) {
    Best best = {-__builtin_huge_val(), vocab};
    for (int id = thread; id < vocab; id += thread_count()) {
      const double x = static_cast<double>(logits[id]);
      if (x < last.value || (x == last.value && id > last.id)) improve(best, x, id);
    }
    last = best_of_block(scratch, best);
    if (thread == 0) write(place, last.id);
    dev::barrier();
  }
}

SW_KERNEL(THREADS, 1)
void sample_rows(SamplingArgs args, uint32_t* counts) {
  SW_SHARED(Scratch, shared, 1);
  Scratch& scratch = shared[0];
  dev::wait_previous_launch();
  const int row = static_cast<int>(dev::block_index().x);
  const size_t stride = stride_of(args.vocab);
  uint64_t* workspace = reinterpret_cast<uint64_t*>(args.workspace) + row * stride;
  const Scan scan = scan_row(scratch, args.vocab, args.logits + size_t(row) * args.logits_stride);
  const int32_t token = choose(scratch, args, row, scan, workspace, counts + row * stride);
  if (dev::thread_index() == 0) {
    args.token_ids[row] = token;
    args.finite[row] = scan.is_finite;
  }
  if (args.logprobs[row] || args.top_logprobs[row] > 0)
    write_logprobs(scratch, args, row, scan, token);
}

}  // namespace

size_t sampling_workspace(int vocab, int rows) {
  return stride_of(vocab) * rows * (sizeof(uint64_t) + sizeof(uint32_t));
}

int sample(const SamplingArgs& args, int rows, Stream stream, Start start) {
  constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
  if (rows == 0) return 0;
  const bool is_aligned = reinterpret_cast<uintptr_t>(args.logits) % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(args.workspace) % 16 == 0;
  if (rows < 0 || args.vocab < 1 || args.vocab > MAX_SAMPLING_VOCAB || args.logits_stride % 4 ||
      args.logits_stride < args.vocab || args.top_width < 0 || args.top_width > MAX_TOP_LOGPROBS ||
      !is_aligned)
    return INVALID_VALUE;
  uint32_t* counts =
      reinterpret_cast<uint32_t*>(args.workspace + stride_of(args.vocab) * rows * sizeof(uint64_t));
  const unsigned threads = args.vocab <= SMALL_VOCAB ? SMALL_THREADS : THREADS;
  return SW_LAUNCH_AT(start, sample_rows, rows, threads, 0, stream, args, counts);
}

}  // namespace servewright::cuda
