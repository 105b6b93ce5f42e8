// Attention of paged float16 K and V: out = softmax(q K^T) V, causal, q already scaled.
//
// Positions are taken 256 at a time (a split), always counted from 0. A split's scores, maximum,
// exponentials and weighted values are a function of the query and these positions alone; splits
// are merged in ascending order:
//   m' = max(m, m_i),  sum' = sum e^(m - m') + sum_i e^(m_i - m'),  values likewise
// so a query has the same bits in a prefill chunk, in a decode step, and with its splits spread
// over threads (`partial`). |error| <= (head_dim + 256 + 4 splits) 2^-24 of the sum of magnitudes.
//
// Up to ROWS queries share each K and V vector once it is converted. K is [dim][position], so that
// lanes are positions in q K^T; V is [position][dim], so that lanes are dimensions in P V.
// Bytes: 4 head_dim a position, KV head and item, of which only the first touch comes from memory.
// Decode reads each K and V once: while an item is computed, the next one's come into L2, for
// blocks lie 4 KiB here and there, which the hardware's prefetchers do not foresee.
#pragma once
#include "projections.h"

namespace {

using servewright::AttentionArgs;
using servewright::AttentionItem;
using servewright::MAX_HEAD_DIM;
using servewright::SPLIT_POSITIONS;

constexpr int LINE = 32;  // float16 numbers of a cache line
constexpr int ROWS = 6;   // 6 x 4 accumulators of 32 registers, 6 x 2 of 16
#if defined(SW_AVX512)
constexpr int WIDE = 4;
#else
constexpr int WIDE = 2;
#endif

// Beyond a power of two, so that rows do not meet in one set of L1.
constexpr int SCORE_STRIDE = SPLIT_POSITIONS + 16;
constexpr int QUERY_STRIDE = MAX_HEAD_DIM + 16;

struct Scratch {
  alignas(64) float q[ROWS * QUERY_STRIDE];
  alignas(64) float scores[ROWS * SCORE_STRIDE];
  alignas(64) float values[ROWS * MAX_HEAD_DIM];  // of the split
  alignas(64) float merged[ROWS * MAX_HEAD_DIM];  // of all splits so far
  const uint16_t* blocks[SPLIT_POSITIONS / KV_POSITIONS];
  const uint16_t* next[SPLIT_POSITIONS / KV_POSITIONS];  // of what is computed after this split
};

SW_INLINE void fetch_into_l2(const uint16_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

// Scores of R queries with N vectors of positions from `first` on.
template <int R, int N>
SW_INLINE void score_vectors(Scratch& s, int dim, int first) {
  const uint16_t *k[N], *next[N];
  for (int n = 0; n < N; ++n) {
    const int position = first + n * LANES;
    k[n] = s.blocks[position / KV_POSITIONS] + position % KV_POSITIONS;
    next[n] = s.next[position / KV_POSITIONS];
  }
  F sums[R][N] = {};
  for (int d = 0; d < dim; ++d) {
    F key[N];
    for (int n = 0; n < N; ++n) key[n] = load_half(k[n] + d * KV_POSITIONS);
    for (int n = 0; n < N; n += KV_POSITIONS / LANES) fetch_into_l2(next[n] + d * KV_POSITIONS);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const F q = all(s.q[r * QUERY_STRIDE + d]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[r][n] = fma(q, key[n], sums[r][n]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(s.scores + r * SCORE_STRIDE + first + n * LANES, sums[r][n]);
}

// values[r][d ..] = sum over `positions` of scores[r][position] * V[position][d ..]
template <int R, int N>
SW_INLINE void weigh_vectors(Scratch& s, int dim, int positions, int d) {
  F sums[R][N] = {};
  for (int position = 0; position < positions; ++position) {
    const int block = position / KV_POSITIONS;
    const int at = KV_POSITIONS * dim + position % KV_POSITIONS * dim + d;
    const uint16_t *v = s.blocks[block] + at, *next = s.next[block] + at;
    F value[N];
    for (int n = 0; n < N; ++n) value[n] = load_half(v + n * LANES);
    for (int n = 0; n < N; n += LINE / LANES) fetch_into_l2(next + n * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const F p = all(s.scores[r * SCORE_STRIDE + position]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[r][n] = fma(p, value[n], sums[r][n]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(s.values + r * MAX_HEAD_DIM + d + n * LANES, sums[r][n]);
}

struct Softmax {
  float max, sum;
};

// scores of R rows -> e^(score - max), 0 from `valid` on, over all `positions` (whole vectors).
template <int R>
SW_INLINE void softmax_rows(Scratch& s, const int* valid, int positions, Softmax* parts) {
  const F nothing = all(-__builtin_inff());
  F most[R], sums[R] = {};
  for (int r = 0; r < R; ++r) most[r] = nothing;
  for (int i = 0; i < positions; i += LANES)
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      float* const scores = s.scores + r * SCORE_STRIDE + i;
      const F x = LANE_NUMBERS < valid[r] - i ? load<F>(scores) : nothing;
      store(scores, x);
      most[r] = maximum(most[r], x);
    }
  for (int r = 0; r < R; ++r) parts[r].max = largest(most[r]);
  for (int i = 0; i < positions; i += LANES)
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      float* const scores = s.scores + r * SCORE_STRIDE + i;
      const F p = exponential(load<F>(scores) - parts[r].max);
      store(scores, p);
      sums[r] += p;
    }
  for (int r = 0; r < R; ++r) parts[r].sum = sum(sums[r]);
}

SW_INLINE float exponential_of(float x) { return exponential(all(x))[0]; }

// Takes one more split into (total, merged).
SW_INLINE void merge_split(Softmax* total, float* merged, const Softmax& part, const float* values,
                           int dim, bool is_first) {
  if (is_first) {
    *total = part;
    for (int d = 0; d < dim; d += LANES) store(merged + d, load<F>(values + d));
    return;
  }
  const float max = total->max > part.max ? total->max : part.max;
  const float before = exponential_of(total->max - max), now = exponential_of(part.max - max);
  total->max = max;
  total->sum = total->sum * before + part.sum * now;
  for (int d = 0; d < dim; d += LANES)
    store(merged + d, fma(load<F>(values + d), all(now), load<F>(merged + d) * before));
}

SW_INLINE void write_result(float* out, const Softmax& total, const float* merged, int dim) {
  const float inverse = 1.0f / total.sum;
  for (int d = 0; d < dim; d += LANES) store(out + d, load<F>(merged + d) * inverse);
}

// The blocks of a split that an item reads. Returns how many of its positions the last row sees.
SW_INLINE int split_blocks(const AttentionArgs& args, const AttentionItem& item, int split,
                           const uint16_t** blocks) {
  const int last_token = (item.row_end - 1) / (args.heads / args.kv.kv_heads);
  const int begin = split * SPLIT_POSITIONS;
  int positions = args.context_starts[item.sequence] + last_token + 1 - begin;
  if (positions > SPLIT_POSITIONS) positions = SPLIT_POSITIONS;
  const int32_t* table =
      args.block_tables + (size_t)item.sequence * args.table_width + begin / KV_POSITIONS;
  for (int b = 0; b * KV_POSITIONS < positions; ++b)
    blocks[b] = kv_block(args.kv, table[b], item.kv_head);
  return positions;
}

template <int R>
void attend_rows(const AttentionArgs& args, const AttentionItem& item, const AttentionItem& next) {
  Scratch s;
  const int dim = args.kv.head_dim, group = args.heads / args.kv.kv_heads;
  const int token0 = args.seq_starts[item.sequence];
  int tokens[R], heads[R], visible[R];
  for (int r = 0; r < R; ++r) {
    const int row = item.row_begin + r;
    tokens[r] = token0 + row / group;
    heads[r] = item.kv_head * group + row % group;
    visible[r] = args.context_starts[item.sequence] + row / group + 1;
    memcpy(s.q + r * QUERY_STRIDE, args.q + ((size_t)tokens[r] * args.heads + heads[r]) * dim,
           dim * sizeof(float));
  }
  Softmax total[R] = {};
  for (int split = item.split_begin; split < item.split_end; ++split) {
    const int begin = split * SPLIT_POSITIONS;
    const int positions = split_blocks(args, item, split, s.blocks);
    if (positions <= 0) break;
    const int blocks = (positions + KV_POSITIONS - 1) / KV_POSITIONS;
    memcpy(s.next, s.blocks, blocks * sizeof s.blocks[0]);  // where there is no next one
    if (split + 1 < item.split_end)
      split_blocks(args, item, split + 1, s.next);
    else
      split_blocks(args, next, next.split_begin, s.next);
    const int whole = blocks * KV_POSITIONS;
    int p = 0;
    for (; p + WIDE * LANES <= whole; p += WIDE * LANES) score_vectors<R, WIDE>(s, dim, p);
    for (; p < whole; p += LANES) score_vectors<R, 1>(s, dim, p);
    Softmax part[R];
    int valid[R];
    for (int r = 0; r < R; ++r) valid[r] = visible[r] - begin;
    softmax_rows<R>(s, valid, whole, part);
    int d = 0;
    for (; d + WIDE * LANES <= dim; d += WIDE * LANES) weigh_vectors<R, WIDE>(s, dim, positions, d);
    for (; d < dim; d += LANES) weigh_vectors<R, 1>(s, dim, positions, d);
    for (int r = 0; r < R; ++r) {
      if (visible[r] <= begin) continue;
      const float* values = s.values + r * MAX_HEAD_DIM;
      if (item.partial) {
        float* out =
            args.partials +
            (((size_t)args.partial_slots[tokens[r]] * args.heads + heads[r]) * args.max_splits +
             split) *
                (dim + 2);
        memcpy(out, &part[r], sizeof(Softmax));
        memcpy(out + 2, values, dim * sizeof(float));
      } else {
        merge_split(&total[r], s.merged + r * MAX_HEAD_DIM, part[r], values, dim, split == 0);
      }
    }
  }
  if (item.partial) return;
  for (int r = 0; r < R; ++r)
    write_result(args.out + ((size_t)tokens[r] * args.heads + heads[r]) * dim, total[r],
                 s.merged + r * MAX_HEAD_DIM, dim);
}

void attention(const AttentionArgs& args, int begin, int end) {
  for (int i = begin; i < end; ++i) {
    const AttentionItem& item = args.items[i];
    const AttentionItem& next = args.items[i + 1 < args.item_count ? i + 1 : i];
    switch (item.row_end - item.row_begin) {
      case 1:
        attend_rows<1>(args, item, next);
        break;
      case 2:
        attend_rows<2>(args, item, next);
        break;
      case 3:
        attend_rows<3>(args, item, next);
        break;
      case 4:
        attend_rows<4>(args, item, next);
        break;
      case 5:
        attend_rows<5>(args, item, next);
        break;
      default:
        attend_rows<ROWS>(args, item, next);
    }
  }
}

// Results of a token that has partials, into `result` [heads * head_dim].
void merge_partials(const AttentionArgs& args, int token, float* result) {
  const int dim = args.kv.head_dim;
  for (int head = 0; head < args.heads; ++head) {
    const float* part = args.partials + ((size_t)args.partial_slots[token] * args.heads + head) *
                                            args.max_splits * (dim + 2);
    alignas(64) float merged[MAX_HEAD_DIM];
    Softmax total = {};
    for (int split = 0; split < args.partial_splits[token]; ++split, part += dim + 2) {
      Softmax one;
      memcpy(&one, part, sizeof one);
      merge_split(&total, merged, one, part + 2, dim, split == 0);
    }
    write_result(result + (size_t)head * dim, total, merged, dim);
  }
}

void finish_attention(const AttentionArgs& args, const Activations& out, float* row, int begin,
                      int end) {
  const int cols = out.cols;
  const auto finish = [&](int first, int last, const float* results) {
    each_some(first, last, [&](int token, auto count) {
      constexpr int N = decltype(count)::value;
      const float* result = results + (size_t)(token - first) * cols;
      for (int b = 0; b < cols / BLOCK; ++b) {
        F x[N * VECTORS];
#pragma GCC unroll 32
        for (int i = 0; i < N * VECTORS; ++i)
          x[i] = load<F>(result + (size_t)(i / VECTORS) * cols + b * BLOCK + i % VECTORS * LANES);
        store_blocks<N>(out, token, b, x);
      }
    });
  };
  while (begin < end) {
    int whole = begin;  // tokens without partials
    while (whole < end && args.partial_slots[whole] < 0) ++whole;
    finish(begin, whole, args.out + (size_t)begin * cols);
    if (whole < end) {
      merge_partials(args, whole, row);
      finish(whole, whole + 1, row);
      ++whole;
    }
    begin = whole;
  }
}

}  // namespace
