// Finding an edge among the tokens of a row, by all threads of a block and without sorting.
//
// Keys are integers that order tokens: the higher key first, the lower id among equals. An edge is
// the last token, in that order, that stays. It is found by radix: bins of keys are summed by
// atomics in shared memory, the bin with the edge is split into 2048 again, and once it holds at
// most GATHERED tokens these are ranked against each other. Many equal keys are binned by id.
// All sums are integers, so the result depends on nothing but the keys.
//
// Every function here is called by all threads of the block.
#pragma once
#include "../common/device.cuh"
#include "../common/draws.h"

namespace servewright::cuda {

namespace dev = servewright::device;

constexpr int BIN_BITS = 11;
constexpr int BINS = 1 << BIN_BITS;  // 16 KB of shared memory
constexpr int GATHERED = 512;        // ranked in 512 steps a thread; more cost as much as a pass
constexpr int SEGMENT = 256;         // ids that a warp takes at once: two vectors of 4 a lane
constexpr int ID_SHIFT = 7;          // bins of 128 ids, which GATHERED holds
constexpr int MAX_SEGMENTS = MAX_DRAW_VOCAB / SEGMENT;
constexpr int MAX_WARPS = 16;

struct Edge {  // keys above `key` stay, and those equal to it up to `id`
  uint64_t key;
  int32_t id;
};
SW_DEVICE bool is_kept(const Edge& edge, uint64_t key, int32_t id) {
  return key > edge.key || (key == edge.key && id <= edge.id);
}

struct Found {
  int index;
  uint64_t before;  // sum in front of it
};

// Shared memory of a block.
struct Scratch {
  uint64_t sums[MAX_SEGMENTS];
  uint64_t best[MAX_SEGMENTS];  // the highest stored key of each segment
  uint64_t keys[GATHERED];
  uint64_t parts[MAX_WARPS];
  double maxima[MAX_WARPS];
  Edge edge;
  Found found;
  uint32_t low[BINS], high[BINS];  // halves of the bins' sums
  int32_t ids[GATHERED];
  int32_t places[MAX_WARPS];
  uint32_t flags[MAX_WARPS];
  uint32_t gathered;
};

SW_DEVICE int lane_index() { return static_cast<int>(dev::thread_index() % 32); }
SW_DEVICE int thread_count() { return static_cast<int>(dev::block_size()); }
SW_DEVICE int warp_count() { return thread_count() / 32; }
SW_DEVICE int warp_index() { return static_cast<int>(dev::thread_index() / 32); }

template <class T>
SW_DEVICE T sum_over_warp(T x) {
  SW_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x += dev::shuffle_xor(x, mask);
  return x;
}

// Calls visit(id, keys of id .. id + 3) for every fourth id of this thread's, but leaves out
// segments in which no key reaches `low` (`best`, null where it is not known). `reader.four` reads
// whole vectors, so memory behind the vocabulary must be readable up to a multiple of 4.
template <class Reader, class Visit>
SW_DEVICE void visit_from(uint64_t low, const uint64_t* best, int vocab, const Reader& reader,
                          const Visit& visit) {
  for (int first = warp_index() * SEGMENT; first < vocab; first += warp_count() * SEGMENT) {
    if (best && best[first / SEGMENT] < low) continue;
    SW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int id = first + half * (SEGMENT / 2) + lane_index() * 4;
      if (id >= vocab) continue;
      uint64_t keys[4];
      reader.four(id, keys);
      visit(id, keys);
    }
  }
}

// A warp's search: the first i in [begin, end) up to which value(begin) + ... exceeds place. There
// is one.
template <class Value>
SW_DEVICE Found locate(int begin, int end, uint64_t before, uint64_t place, const Value& value) {
  const int lane = lane_index();
  for (;; begin += 32) {
    const uint64_t own = begin + lane < end ? value(begin + lane) : 0;
    uint64_t upto = own;
    SW_UNROLL
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = dev::shuffle(upto, (lane - step) & 31);
      if (lane >= step) upto += other;
    }
    const uint32_t beyond = dev::vote_ballot(before + upto > place);
    if (beyond || begin + 32 >= end) {
      const int first = 31 - dev::leading_zeros(beyond & (0u - beyond));
      return {begin + first, before + dev::shuffle(upto - own, first & 31)};
    }
    before += dev::shuffle(upto, 31);
  }
}

// Values are summed in chunks, one a warp.
SW_DEVICE int chunk_of(int count) { return (count + thread_count() - 1) / thread_count() * 32; }

// Sum of all threads' values; leaves the warps' sums in scratch.parts.
SW_DEVICE uint64_t sum_over_block(Scratch& scratch, uint64_t sum) {
  sum = sum_over_warp(sum);
  if (lane_index() == 0) scratch.parts[warp_index()] = sum;
  dev::barrier();
  sum = 0;
  for (int warp = 0; warp < warp_count(); ++warp) sum += scratch.parts[warp];
  return sum;
}

// Sum of value(0 .. count - 1), by chunks of a warp, for `find`.
template <class Value>
SW_DEVICE uint64_t total_of(Scratch& scratch, int count, const Value& value) {
  const int chunk = chunk_of(count);
  const int begin = warp_index() * chunk, end = dev::minimum(begin + chunk, count);
  uint64_t sum = 0;
  for (int i = begin + lane_index(); i < end; i += 32) sum += value(i);
  return sum_over_block(scratch, sum);
}

// Of one warp, behind total_of: where the sum of all values exceeds place < total.
template <class Value>
SW_DEVICE Found find(const Scratch& scratch, int count, uint64_t place, const Value& value) {
  const int chunk = chunk_of(count);
  uint64_t before = 0;
  int warp = 0;
  while (warp < warp_count() - 1 && before + scratch.parts[warp] <= place)
    before += scratch.parts[warp++];
  return locate(warp * chunk, dev::minimum((warp + 1) * chunk, count), before, place, value);
}

SW_ANY int segments_of(int vocab) { return (vocab + SEGMENT - 1) / SEGMENT; }

// Behind total_of over scratch.sums, the sums of segments: the first id up to which value(id) + ...
// exceeds place < the sum of all.
template <class Value>
SW_DEVICE int32_t find_id(Scratch& scratch, int vocab, uint64_t place, const Value& value) {
  if (warp_index() == 0) {
    const Found segment =
        find(scratch, segments_of(vocab), place, [&](int i) { return scratch.sums[i]; });
    const int begin = segment.index * SEGMENT;
    const Found id =
        locate(begin, dev::minimum(begin + SEGMENT, vocab), segment.before, place, value);
    if (lane_index() == 0) scratch.found = id;
  }
  dev::barrier();
  return scratch.found.index;
}

SW_DEVICE void clear_bins(Scratch& scratch) {
  for (int i = static_cast<int>(dev::thread_index()); i < BINS; i += thread_count())
    scratch.low[i] = scratch.high[i] = 0;
  dev::barrier();
}

// A 64-bit sum by 32-bit atomics, which shared memory has: the addition that wraps carries.
SW_DEVICE void add_to_bin(Scratch& scratch, int bin, uint64_t value) {
  const uint32_t low = static_cast<uint32_t>(value);
  const uint32_t sum = dev::atomic_add_relaxed(&scratch.low[bin], low) + low;
  const uint32_t high = static_cast<uint32_t>(value >> 32) + (sum < low);
  if (high) dev::atomic_add_relaxed(&scratch.high[bin], high);
}

SW_DEVICE uint64_t bin_of(const Scratch& scratch, int bin) {
  return scratch.low[bin] | uint64_t{scratch.high[bin]} << 32;
}

// Keys of a level: bin 0 begins at `top`, downwards, and a bin is 2^shift keys wide.
struct Level {
  uint64_t top;
  int shift;
};

// What decides an edge: the number of tokens, or their mass. Key 0 counts for nothing.
struct Rule {
  bool is_by_mass;
  uint64_t count;
  float top_p;

  SW_DEVICE uint64_t measure(uint64_t key) const {
    return is_by_mass ? mass_of(dev::bit_cast<double>(key)) : 1;
  }
  SW_DEVICE uint64_t wanted(uint64_t total) const {
    return is_by_mass ? wanted_of(top_p, total) : count;
  }
};

// Adds a token to its bin of the level, if it has one.
SW_DEVICE void count_key(Scratch& scratch, const Level& level, uint64_t key, uint64_t measure) {
  if (key == 0 || key > level.top) return;
  const uint64_t bin = (level.top - key) >> level.shift;
  if (bin < BINS) add_to_bin(scratch, static_cast<int>(bin), measure);
}

// Puts tokens with low <= reader's key <= high, and key_of(id, key) > 0, into scratch.keys (that
// number) and .ids, in no order, and returns how many they are; beyond GATHERED it only counts.
template <class Reader, class Key>
SW_DEVICE int gather(Scratch& scratch, int vocab, const uint64_t* best, const Reader& reader,
                     uint64_t low, uint64_t high, const Key& key_of) {
  if (dev::thread_index() == 0) scratch.gathered = 0;
  dev::barrier();
  visit_from(low, best, vocab, reader, [&](int id, const uint64_t (&keys)[4]) {
    SW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (keys[i] - low > high - low || id + i >= vocab) continue;  // nearly all of them
      const uint64_t key = key_of(id + i, keys[i]);
      if (key == 0) continue;
      const uint32_t place = dev::atomic_add_relaxed(&scratch.gathered, 1u);
      if (place >= GATHERED) continue;
      scratch.keys[place] = key;
      scratch.ids[place] = id + i;
    }
  });
  dev::barrier();
  return static_cast<int>(scratch.gathered);
}

SW_DEVICE bool is_better(const Scratch& scratch, int a, int b) {
  return scratch.keys[a] > scratch.keys[b] ||
         (scratch.keys[a] == scratch.keys[b] && scratch.ids[a] < scratch.ids[b]);
}

// The edge with which the measures of the tokens within `kept`, best first, reach what the rule
// wants; `kept` itself where they never do. `is_counted`: the bins hold the first level already;
// scratch.best is known.
template <class Reader>
SW_DEVICE Edge select(Scratch& scratch, int vocab, const Reader& reader, const Edge& kept,
                      Level level, const Rule& rule, bool is_counted) {
  uint64_t tied = 0;  // the one key that is left, once it is known: then ids decide
  const auto key_of = [&](int32_t id, uint64_t key) -> uint64_t {
    if (!is_kept(kept, key, id)) return 0;
    if (tied == 0) return key;
    return key == tied ? MAX_DRAW_VOCAB - id : 0;
  };
  const auto measure_of = [&](uint64_t key) { return rule.measure(tied ? tied : key); };
  const auto bin = [&](int i) { return bin_of(scratch, i); };
  uint64_t wanted = 0, before = 0, low = kept.key;  // below `low` nobody counts
  for (;;) {
    if (!is_counted) {
      clear_bins(scratch);
      visit_from(low, scratch.best, vocab, reader, [&](int id, const uint64_t (&keys)[4]) {
        SW_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint64_t key = id + i < vocab ? key_of(id + i, keys[i]) : 0;
          count_key(scratch, level, key, measure_of(key));
        }
      });
    }
    is_counted = false;
    dev::barrier();
    const uint64_t total = total_of(scratch, BINS, bin);
    if (wanted == 0) {
      wanted = rule.wanted(total);
      if (total < wanted) return kept;
    }
    if (warp_index() == 0) {
      const Found found = find(scratch, BINS, wanted - 1 - before, bin);
      if (lane_index() == 0) scratch.found = found;
    }
    dev::barrier();
    before += scratch.found.before;
    level.top -= static_cast<uint64_t>(scratch.found.index) << level.shift;
    const uint64_t width = (uint64_t{1} << level.shift) - 1;
    const uint64_t lowest = level.top > width ? level.top - width : 1;
    low = tied ? tied : lowest;
    const int count = gather(scratch, vocab, scratch.best, reader, low, tied ? tied : level.top,
                             [&](int32_t id, uint64_t own) -> uint64_t {
                               const uint64_t key = key_of(id, own);
                               return key >= lowest && key <= level.top ? key : 0;
                             });
    if (count <= GATHERED) {
      // The one with which the measures, in order and behind `before`, reach `wanted`.
      for (int i = static_cast<int>(dev::thread_index()); i < count; i += thread_count()) {
        uint64_t better = before;
        for (int j = 0; j < count; ++j)
          if (is_better(scratch, j, i)) better += measure_of(scratch.keys[j]);
        if (better < wanted && better + measure_of(scratch.keys[i]) >= wanted)
          scratch.edge = {tied ? tied : scratch.keys[i], scratch.ids[i]};
      }
      dev::barrier();
      return scratch.edge;
    }
    if (level.shift > 0) {
      level.shift = dev::maximum(level.shift - BIN_BITS, 0);
    } else {
      tied = low = level.top;
      level = {MAX_DRAW_VOCAB, ID_SHIFT};
    }
  }
}

}  // namespace servewright::cuda
