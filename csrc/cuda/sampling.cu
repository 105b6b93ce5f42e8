// One launch draws a token for every row; sampling.cuh has the formula, the layout and the bytes.
#include "sampling.cuh"

namespace servewright::cuda {
namespace {

// 16 warps: 4 for each scheduler, of 4 exponentials each, hide the latency of double arithmetic,
// and 512 threads leave each the registers it needs: with 32 warps 680 bytes were spilled.
constexpr int THREADS = MAX_WARPS * 32;
constexpr int SMALL_VOCAB = 4096;
constexpr int SMALL_THREADS = 128;  // rows of few tokens wait for barriers alone

struct Scan {
  Best best;
  bool is_finite;
};

// Reads the row once: its highest logit, and whether all are finite. Of rows to be adjusted it
// leaves x = logit in the workspace, and counts at zero.
SW_DEVICE Scan scan_row(Scratch& scratch, int vocab, const float* logits, uint64_t* x,
                        uint32_t* counts) {
  Best best = {-__builtin_huge_val(), 0};
  bool is_odd = false;
  for (int id = static_cast<int>(dev::thread_index()) * 4; id < vocab; id += thread_count() * 4) {
    float raw[4];
    load_floats(logits + id, raw);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (id + i >= vocab) continue;
      is_odd |= (dev::bit_cast<uint32_t>(raw[i]) & 0x7f800000u) == 0x7f800000u;
      improve(best, static_cast<double>(raw[i]), id + i);
    }
    if (x) {
      uint64_t bits[4];
      SW_UNROLL
      for (int i = 0; i < 4; ++i) bits[i] = dev::bit_cast<uint64_t>(static_cast<double>(raw[i]));
      store_words(x + id, bits);
    }
    if (counts) dev::store_vector(counts + id, dev::Vector<uint32_t, 4>{{0, 0, 0, 0}});
  }
  is_odd = dev::vote_any(is_odd);
  if (lane_index() == 0) scratch.flags[warp_index()] = is_odd;
  best = best_of_block(scratch, best);
  uint32_t odd = 0;
  for (int warp = 0; warp < warp_count(); ++warp) odd |= scratch.flags[warp];
  return {best, odd == 0};
}

template <class Reader>
SW_DEVICE int32_t draw_token(Scratch& scratch, int vocab, const Reader& reader, const Edge& kept,
                             uint64_t random53) {
  const auto measure = [&](int32_t id, uint64_t key) {
    return is_kept(kept, key, id) ? mass_of(dev::bit_cast<double>(key)) : 0;
  };
  const uint64_t total = sum_segments(scratch, vocab, reader, measure);
  return find_id(scratch, vocab, place_of(random53, total), reader, measure);
}

// Computes the weights of a row into `keys` and the bins of the first filter, and cuts.
SW_DEVICE Edge filter(Scratch& scratch, const SamplingArgs& args, int row,
                      const Exponentials& weights, Edge kept, uint64_t* keys) {
  const int vocab = args.vocab;
  const ByCount by_count = {static_cast<uint64_t>(args.top_k[row])};
  const ByMass by_mass = {args.top_p[row]};
  clear_bins(scratch);
  visit_all(vocab, weights, [&](int id, const uint64_t (&four)[4]) {
    store_words(keys + id, four);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (id + i >= vocab) continue;
      if (by_count.count > 0)
        count_key(scratch, weight_level(), kept, by_count, id + i, four[i]);
      else
        count_key(scratch, weight_level(), kept, by_mass, id + i, four[i]);
    }
  });
  const StoredKeys stored = {keys};
  if (by_count.count > 0)
    kept = select(scratch, vocab, stored, kept, weight_level(), by_count, true);
  if (by_mass.top_p < 1.0f)
    kept = select(scratch, vocab, stored, kept, weight_level(), by_mass, by_count.count == 0);
  return kept;
}

SW_DEVICE int32_t choose(Scratch& scratch, const SamplingArgs& args, int row, const RowView& view,
                         const Scan& scan, uint64_t* x, uint32_t* counts) {
  const double temperature = args.temperature[row];
  const bool is_adjusted = x != nullptr;
  if (!scan.is_finite || (temperature == 0.0 && !is_adjusted)) return scan.best.id;
  const int vocab = args.vocab;
  const Values values = {args.logits + size_t(row) * args.logits_stride, x};
  double max = scan.best.value;
  if (is_adjusted) {
    add_biases(view, x);
    dev::barrier();
    if (counts) {
      penalise(args, view, row, counts, x);
      dev::barrier();
    }
    const Best best = best_value(scratch, vocab, values);
    if (temperature == 0.0) return best.id;
    max = best.value;
  }
  const uint64_t random53 = random_bits(args.seed[row], args.draw[row]);
  const Exponentials weights(values, max, temperature);
  const Edge kept = {dev::bit_cast<uint64_t>(static_cast<double>(args.min_p[row])), vocab};
  if (args.top_k[row] == 0 && args.top_p[row] >= 1.0f)
    return draw_token(scratch, vocab, weights, kept, random53);
  const size_t stride = (static_cast<size_t>(vocab) + 3) / 4 * 4;
  uint64_t* keys = reinterpret_cast<uint64_t*>(args.workspace) + row * stride;
  const Edge edge = filter(scratch, args, row, weights, kept, keys);
  return draw_token(scratch, vocab, StoredKeys{keys}, edge, random53);
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
    for (int i = thread; i < count; i += thread_count()) {
      top_ids[i] = i;
      top_values[i] = nan;
    }
    return;
  }
  const Exponentials weights(Values{logits, nullptr}, scan.best.value, 1.0);
  const uint64_t total = sum_segments(scratch, vocab, weights, [](int32_t, uint64_t key) {
    return mass_of(dev::bit_cast<double>(key));
  });
  const double log_total = dev::log(static_cast<double>(total) * 0x1p-45);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[id]) - scan.best.value - log_total);
  };
  if (thread == 0) args.token_logprobs[row] = logprob(token);
  if (count == 0) return;
  const LogitKeys keys = {logits};
  const Level level = {key_of_float(static_cast<float>(scan.best.value)), LOGIT_SHIFT};
  const Edge all = {0, vocab};
  const Edge edge =
      select(scratch, vocab, keys, all, level, ByCount{static_cast<uint64_t>(count)}, false);
  gather(scratch, vocab, keys, edge, edge.key, level.top);
  if (thread >= count) return;
  int place = 0;
  for (int j = 0; j < count; ++j) place += is_better(scratch, j, thread);
  top_ids[place] = scratch.ids[thread];
  top_values[place] = logprob(scratch.ids[thread]);
}

SW_KERNEL(THREADS, 1)
void sample_rows(SamplingArgs args, uint32_t* counts) {
  SW_SHARED(Scratch, shared, 1);
  Scratch& scratch = shared[0];
  const int row = static_cast<int>(dev::block_index().x);
  const RowView view(args, row);
  const size_t stride = (static_cast<size_t>(args.vocab) + 3) / 4 * 4;
  uint64_t* x = reinterpret_cast<uint64_t*>(args.workspace) + row * stride;
  uint32_t* row_counts = view.history_length > 0 ? counts + row * stride : nullptr;
  if (view.history_length == 0 && view.biases == 0) x = nullptr;

  const Scan scan =
      scan_row(scratch, args.vocab, args.logits + size_t(row) * args.logits_stride, x, row_counts);
  dev::barrier();
  const int32_t token = choose(scratch, args, row, view, scan, x, row_counts);
  if (dev::thread_index() == 0) {
    args.token_ids[row] = token;
    args.finite[row] = scan.is_finite;
  }
  if (args.logprobs[row] || args.top_logprobs[row] > 0) {
    dev::barrier();
    write_logprobs(scratch, args, row, scan, token);
  }
}

}  // namespace

size_t sampling_workspace(int vocab, int rows) {
  const size_t stride = (static_cast<size_t>(vocab) + 3) / 4 * 4;
  return stride * rows * (sizeof(uint64_t) + sizeof(uint32_t));
}

int sample(const SamplingArgs& args, int rows, Stream stream) {
  constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
  if (rows == 0) return 0;
  const bool is_aligned = reinterpret_cast<uintptr_t>(args.logits) % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(args.workspace) % 16 == 0;
  if (rows < 0 || args.vocab < 1 || args.vocab > MAX_SAMPLING_VOCAB || args.logits_stride % 4 ||
      args.logits_stride < args.vocab || args.top_width < 0 || args.top_width > MAX_TOP_LOGPROBS ||
      !is_aligned)
    return INVALID_VALUE;
  const size_t stride = (static_cast<size_t>(args.vocab) + 3) / 4 * 4;
  uint32_t* counts = reinterpret_cast<uint32_t*>(args.workspace + stride * rows * sizeof(uint64_t));
  const unsigned threads = args.vocab <= SMALL_VOCAB ? SMALL_THREADS : THREADS;
  return SW_LAUNCH(sample_rows, rows, threads, 0, stream, args, counts);
}

}  // namespace servewright::cuda
