// A row by several blocks: each scans or weighs a part of it, and the last to come, by a ticket,
// goes on alone with what all have left. Sums are exact integers, so no number of parts changes a
// token.
#pragma once
#include "sampling.cuh"

namespace servewright::cuda {

// A row is cut where each part still has so much to do that the ticket's latency does not matter.
constexpr int PART_IDS = 8192;

// What a block does of its row: ids [begin, end), whole segments.
struct Part {
  int index, count;
  int begin, end;
};
SW_DEVICE Part part_of(int vocab, int index, int count) {
  const int segments = segments_of(vocab);
  return {index, count, segments * index / count * SEGMENT,
          dev::minimum(segments * (index + 1) / count * SEGMENT, vocab)};
}

// What the parts of a row leave for the last of them.
struct Records {
  uint64_t* bins;      // [blocks, BINS], of each part; without a draw, what it has scanned
  uint64_t* segments;  // [rows, segments of the vocabulary]: sums, or with bins the highest keys
};

// Whether this block is the last of its row to come here: it sees what the others have left.
SW_DEVICE bool is_last_part(Scratch& scratch, unsigned* ticket, int parts) {
  dev::barrier();
  if (dev::thread_index() == 0) {
    scratch.gathered = dev::atomic_add_acq_rel(ticket, 1u) + 1;
    if (scratch.gathered == static_cast<unsigned>(parts)) *ticket = 0;
  }
  dev::barrier();
  return scratch.gathered == static_cast<unsigned>(parts);
}

constexpr int SCAN_LOADS = 4;  // in flight a thread: 32 KB of the SM's, what its share of L2 needs
constexpr int SCAN_IDS = SCAN_LOADS * 4;

struct Scan {
  float max;
  int32_t argmax;
  bool is_finite;
  uint64_t top;  // this thread's own highest key, 0 without a token
  int32_t top_id;
};

// Of all threads' own. A barrier comes between two calls.
SW_DEVICE Scan best_scan(Scratch& scratch, double max, int32_t argmax, bool is_odd) {
  const bool is_warp_odd = dev::vote_any(is_odd);
  if (lane_index() == 0) scratch.flags[warp_index()] = is_warp_odd;
  const Best best = best_of_block(scratch, {max, argmax});
  uint32_t odd = 0;
  for (int warp = 0; warp < warp_count(); ++warp) odd |= scratch.flags[warp];
  return {static_cast<float>(best.value), best.id, odd == 0, 0, 0};
}

// The highest logit of [begin, end), and whether all are finite. Of 16 logits a thread looks for
// the id only where they have a new maximum.
SW_DEVICE Scan scan_row(Scratch& scratch, int begin, int end, const float* logits) {
  float max = -__builtin_huge_valf(), odd = 0;  // 0 * x is 0 but for NaN and infinity
  int32_t argmax = begin;
  const int step = thread_count() * 4;
  const int first = begin + static_cast<int>(dev::thread_index()) * 4;
  for (int at = first; at < end; at += SCAN_LOADS * step) {
    float x[SCAN_IDS];
    SW_UNROLL
    for (int i = 0; i < SCAN_LOADS; ++i) {
      float four[4] = {};
      if (at + i * step < end) load_floats(logits + at + i * step, four);
      SW_UNROLL
      for (int j = 0; j < 4; ++j) x[4 * i + j] = four[j];
    }
    const auto id_of = [&](int i) { return at + i / 4 * step + i % 4; };
    if (id_of(SCAN_IDS - 1) >= end) {
      SW_UNROLL
      for (int i = 0; i < SCAN_IDS; ++i) {
        if (id_of(i) >= end) continue;
        odd = dev::fma(x[i], 0.0f, odd);
        if (x[i] > max) max = x[i], argmax = id_of(i);
      }
      continue;
    }
    float highest = max;
    SW_UNROLL
    for (int i = 0; i < SCAN_IDS; ++i) {
      odd = dev::fma(x[i], 0.0f, odd);
      highest = dev::maximum(highest, x[i]);
    }
    if (!(highest > max)) continue;
    max = highest;
    SW_UNROLL
    for (int i = SCAN_IDS - 1; i >= 0; --i)
      if (x[i] == max) argmax = id_of(i);
  }
  Scan scan = best_scan(scratch, static_cast<double>(max), argmax, odd != 0.0f);
  scan.top = first < end ? key_of_float(max) : 0;
  scan.top_id = argmax;
  return scan;
}

// Of a greedy row that several blocks have scanned; true in the last one, which knows the best.
SW_DEVICE bool share_scan(Scratch& scratch, const Part& part, const Records& records,
                          unsigned* ticket, Scan& scan) {
  const int thread = static_cast<int>(dev::thread_index());
  if (thread == 0)
    dev::store_vector(records.bins + part.index * BINS,
                      Words{{dev::bit_cast<uint64_t>(static_cast<double>(scan.max)),
                             static_cast<uint64_t>(scan.argmax) << 1 | !scan.is_finite}});
  if (!is_last_part(scratch, ticket, part.count)) return false;
  Best best = {-__builtin_huge_val(), MAX_DRAW_VOCAB};
  bool is_odd = false;
  for (int i = thread; i < part.count; i += thread_count()) {
    const Words other = dev::load_vector<Words>(records.bins + i * BINS);
    improve(best, dev::bit_cast<double>(other[0]), static_cast<int32_t>(other[1] >> 1));
    is_odd = is_odd || (other[1] & 1);
  }
  scan = best_scan(scratch, best.value, best.id, is_odd);
  return true;
}

constexpr int PARTS_AT_ONCE = 16;  // loads in flight a thread: of each part of 128 k ids one

// What the parts of a row have weighed, put together by the last one; false in the others.
SW_DEVICE bool share_weights(Scratch& scratch, const Part& part, const Records& records,
                             unsigned* ticket, int vocab, bool has_bins) {
  const int thread = static_cast<int>(dev::thread_index()), threads = thread_count();
  uint64_t* const segments = has_bins ? scratch.best : scratch.sums;
  dev::barrier();
  for (int i = part.begin / SEGMENT + thread; i < segments_of(part.end); i += threads)
    records.segments[i] = segments[i];
  for (int i = 2 * thread; has_bins && i < BINS; i += 2 * threads)
    dev::store_vector(records.bins + part.index * BINS + i,
                      Words{{bin_of(scratch, i), bin_of(scratch, i + 1)}});
  if (!is_last_part(scratch, ticket, part.count)) return false;
  for (int i = thread; i < segments_of(vocab); i += threads) segments[i] = records.segments[i];
  for (int i = 2 * thread; has_bins && i < BINS; i += 2 * threads) {
    uint64_t sums[2] = {};
    for (int begin = 0; begin < part.count; begin += PARTS_AT_ONCE) {
      Words loaded[PARTS_AT_ONCE];
      SW_UNROLL
      for (int j = 0; j < PARTS_AT_ONCE; ++j) {
        loaded[j] = {};
        if (begin + j < part.count)
          loaded[j] = dev::load_vector<Words>(records.bins + (begin + j) * BINS + i);
      }
      SW_UNROLL
      for (int j = 0; j < PARTS_AT_ONCE; ++j) sums[0] += loaded[j][0], sums[1] += loaded[j][1];
    }
    SW_UNROLL
    for (int k = 0; k < 2; ++k) {
      scratch.low[i + k] = static_cast<uint32_t>(sums[k]);
      scratch.high[i + k] = static_cast<uint32_t>(sums[k] >> 32);
    }
  }
  return true;
}

}  // namespace servewright::cuda
