// One launch draws a token for every row; sampling.cuh has the formula, the layout and the bytes.
#include "sampling_parts.cuh"

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

// Keys of the weights of a part, the bins of the first filter, the segments' highest keys; without
// filters sums of segments instead. The caller waits.
SW_DEVICE void weigh(Scratch& scratch, const Part& part, const Exponentials& weights,
                     uint64_t min_key, const Rule& rule, uint64_t* keys) {
  const Level level = weight_level();
  uint64_t* const segments = keys ? scratch.best : scratch.sums;
  const int end = part.end;
  for (int first = part.begin + warp_index() * SEGMENT; first < end;
       first += warp_count() * SEGMENT) {
    uint64_t sum = 0;  // or the highest key
    for (int id = first + lane_index() * 4; id < dev::minimum(first + SEGMENT, end);
         id += SEGMENT / 2) {
      uint64_t four[4];
      weights.four(id, four);
      if (keys) store_words(keys, id, four);
      SW_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (id + i >= end || four[i] < min_key) continue;
        const uint64_t measure = rule.measure(four[i]);
        sum = keys ? dev::maximum(sum, four[i]) : sum + measure;
        if (keys) count_key(scratch, level, four[i], measure);
      }
    }
    if (keys) {
      SW_UNROLL
      for (int mask = 16; mask > 0; mask /= 2) sum = dev::maximum(sum, dev::shuffle_xor(sum, mask));
    } else {
      sum = sum_over_warp(sum);
    }
    if (lane_index() == 0) segments[first / SEGMENT] = sum;
  }
}

SW_DEVICE void sum_segments(Scratch& scratch, int vocab, const StoredKeys& stored,
                            const Edge& kept) {
  for (int first = warp_index() * SEGMENT; first < vocab; first += warp_count() * SEGMENT) {
    uint64_t sum = 0;
    SW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int id = first + half * (SEGMENT / 2) + lane_index() * 4;
      if (id >= vocab || scratch.best[first / SEGMENT] < kept.key) continue;
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

// NOBODY where another part of the row draws.
constexpr int32_t NOBODY = -1;
SW_DEVICE int32_t draw_token(Scratch& scratch, const SamplingArgs& args, int row, const Part& part,
                             const Records& records, const Exponentials& weights,
                             uint64_t* workspace) {
  const int vocab = args.vocab;
  Rule rule = {false, static_cast<uint64_t>(args.top_k[row]), args.top_p[row]};
  // Of the two filters, top_k and top_p, those from `filter` to `last` are on.
  int filter = rule.count > 0 ? 0 : 1;
  const int last = rule.top_p < 1.0f ? 1 : 0;
  uint64_t* keys = filter <= last ? workspace : nullptr;
  Edge kept = {dev::bit_cast<uint64_t>(static_cast<double>(args.min_p[row])), vocab};
  if (keys) clear_bins(scratch);
  rule.is_by_mass = filter == 1;
  weigh(scratch, part, weights, kept.key, rule, keys);
  if (part.count > 1 &&
      !share_weights(scratch, part, records, args.tickets + row, vocab, keys != nullptr))
    return NOBODY;
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

SW_DEVICE int32_t choose(Scratch& scratch, const SamplingArgs& args, int row, const Part& part,
                         const Records& records, const Scan& scan, uint64_t* workspace,
                         uint32_t* counts) {
  const RowView view(args, row);
  const double temperature = args.temperature[row];
  const bool is_adjusted = view.is_adjusted();
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
  return draw_token(scratch, args, row, part, records, Exponentials(values, max, temperature),
                    workspace);
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
  return gather(scratch, vocab, nullptr, keys, edge.key, ~uint64_t{0},
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

// A row's blocks are neighbours in y. Where they share it, each knows the maximum by a scan of the
// whole row, which takes less time than to meet for it.
SW_KERNEL(THREADS, 1)
void sample_rows(SamplingArgs args, uint32_t* counts, Records records) {
  SW_SHARED(Scratch, shared, 1);
  Scratch& scratch = shared[0];
  dev::wait_previous_launch();
  const int row = static_cast<int>(dev::block_index().x), vocab = args.vocab;
  const int index = static_cast<int>(dev::block_index().y);
  int parts = static_cast<int>(dev::grid_size().y);
  records.bins += static_cast<size_t>(row) * parts * BINS;
  records.segments += static_cast<size_t>(row) * segments_of(vocab);
  const bool wants_logprobs = args.logprobs[row] || args.top_logprobs[row] > 0;
  const bool is_greedy = args.temperature[row] == 0.0f;
  // One block's: x that is changed first, and log probabilities without a draw.
  if (RowView(args, row).is_adjusted() || (is_greedy && wants_logprobs)) parts = 1;
  if (index >= parts) return;
  const Part part = part_of(vocab, index, parts);
  const size_t stride = stride_of(vocab);
  uint64_t* workspace = reinterpret_cast<uint64_t*>(args.workspace) + row * stride;
  Scan scan = scan_row(scratch, is_greedy ? part.begin : 0, is_greedy ? part.end : vocab,
                       args.logits + size_t(row) * args.logits_stride);
  if (parts > 1) {
    if (is_greedy && !share_scan(scratch, part, records, args.tickets + row, scan)) return;
    if (!scan.is_finite && !is_greedy && index > 0) return;
  }
  const int32_t token =
      choose(scratch, args, row, part, records, scan, workspace, counts + row * stride);
  if (token == NOBODY) return;
  if (dev::thread_index() == 0) {
    args.token_ids[row] = token;
    args.finite[row] = scan.is_finite;
  }
  if (wants_logprobs) write_logprobs(scratch, args, row, scan, token);
}

int chosen_parts(int vocab, int rows) {
  const int room = MAX_SAMPLING_BLOCKS / rows, most = vocab / PART_IDS;
  return room < 1 || most < 1 ? 1 : room < most ? room : most;
}

}  // namespace

size_t sampling_workspace(int vocab, int rows) {
  const size_t words = stride_of(vocab) * (sizeof(uint64_t) + sizeof(uint32_t));
  return rows * (words + segments_of(vocab) * sizeof(uint64_t)) +
         size_t{MAX_SAMPLING_BLOCKS} * BINS * sizeof(uint64_t);
}

int sample(const SamplingArgs& args, int rows, Stream stream, Start start, SamplingGrid grid) {
  constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
  if (rows == 0) return 0;
  const bool is_aligned = reinterpret_cast<uintptr_t>(args.logits) % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(args.workspace) % 16 == 0;
  if (rows < 0 || args.vocab < 1 || args.vocab > MAX_SAMPLING_VOCAB || args.logits_stride % 4 ||
      args.logits_stride < args.vocab || args.top_width < 0 || args.top_width > MAX_TOP_LOGPROBS ||
      !is_aligned)
    return INVALID_VALUE;
  if (grid.parts == 0) grid.parts = args.tickets ? chosen_parts(args.vocab, rows) : 1;
  if (grid.threads == 0) grid.threads = args.vocab <= SMALL_VOCAB ? SMALL_THREADS : THREADS;
  const bool is_cut = grid.parts > 1;
  if (grid.parts < 1 || grid.threads < 32 || grid.threads > THREADS || grid.threads % 32 ||
      (is_cut && (!args.tickets || grid.parts > MAX_SAMPLING_BLOCKS / rows)))
    return INVALID_VALUE;
  const size_t words = stride_of(args.vocab) * rows;
  uint64_t* const keys = reinterpret_cast<uint64_t*>(args.workspace);
  uint32_t* const counts = reinterpret_cast<uint32_t*>(keys + words);
  uint64_t* const behind = reinterpret_cast<uint64_t*>(counts + words);
  const Records records = {behind, behind + size_t(rows) * grid.parts * BINS};
  const dev::Index3 blocks(static_cast<unsigned>(rows), static_cast<unsigned>(grid.parts));
  return SW_LAUNCH_AT(start, sample_rows, blocks, static_cast<unsigned>(grid.threads), 0, stream,
                      args, counts, records);
}

}  // namespace servewright::cuda
