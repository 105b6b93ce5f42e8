// Causal attention of one sequence's chunk over its paged bf16 keys and values, in one launch:
//
//   out[query] = softmax(q K^T / sqrt(head_dim)) V over positions 0 .. the query's own
//
// Shapes   queries [tokens, heads, head_dim] bf16, rotated, times log2(e) / sqrt(head_dim)
//          (rope_append.cuh); out [tokens, heads head_dim] bf16; head_dim 64 or 128, any group of
//          query heads a KV head. Pool and pages as for decode (attention.cuh); no position behind
//          the chunk and no page number behind its last page is read.
// Work     rows are (query, head of the group), heads fastest; a block has one KV head and, of its
//          rows, ROW_TILES times 16 a warp: with two each K and V fragment is used twice, with one
//          there are twice as many blocks. Both products are mma.m16n8k16: scores [16 rows x 8
//          keys] and values [16 rows x 8 dimensions]. The block walks the keys in stages of 32: the
//          next ones are copied (cp.async) while one is multiplied; one barrier a stage. A warp
//          leaves out what lies behind all its queries. Long blocks start first.
// Order    keys ascending from position 0, 32 at a time whatever the chunk is; what lies behind a
//          query changes nothing of it. Sums are scaled to a new maximum when a score is more than
//          8 (of base 2) above the old one. So a query's bits depend on the keys and on itself
//          alone: not on first_position, tokens, pages, its place in a block, ROW_TILES.
// Numbers  the weights 2^(s - max) enter the values and their own sum as the same bf16; sums are
//          float32. |error| <= (2^-8 + 2^-14 (1 + S) + 2^-22 positions) max |v| + 2^-7 |out|, S the
//          largest sum of |q_d k_d| of a position, q as it comes.
// Bytes    K and V up to its last query once a block, from L2 but for the first; queries and out
//          once.
// Source   online softmax by tiles, registers from one product to the other: Dao, FlashAttention-2
//          (2023); fragments: PTX ISA 9.0, mma.m16n8k16.
#pragma once
#include "../common/device.cuh"
#include "../common/prefill_ops.h"

namespace servewright::cuda {

namespace prefill {

using namespace servewright::device;

using Words = Vector<uint32_t, 4>;  // 8 bf16

constexpr int ATTENTION_WARPS = 4;
constexpr int ATTENTION_THREADS = 32 * ATTENTION_WARPS;
constexpr int KEYS = 32;  // of a stage; part of the result's bits
constexpr int KEY_TILES = KEYS / 8;
constexpr int STAGE_PAGES = KEYS / PAGE_POSITIONS;
constexpr float NOTHING = -__builtin_inff();
constexpr uint32_t ONES = 0x3f803f80u;  // two bf16
constexpr float SLACK = 8;              // part of the result's bits; weights are at most 2^8

template <int D, int ROW_TILES>
struct AttentionPlan {
  static constexpr int CHUNKS = D / 8;  // 16-byte pieces of a row
  static constexpr int WARP_ROWS = 16 * ROW_TILES;
  static constexpr int ROWS = ATTENTION_WARPS * WARP_ROWS;
  static constexpr int MATRIX_WORDS = KEYS * CHUNKS;  // K or V of a stage
  static constexpr int STAGE_WORDS = 2 * MATRIX_WORDS;
  static constexpr int STAGES = D == 128 ? 2 : 4;
  static constexpr int WARP_QUERY_WORDS = WARP_ROWS * CHUNKS;
  static constexpr int QUERY_WORDS = ATTENTION_WARPS * WARP_QUERY_WORDS;
  static constexpr size_t BYTES = sizeof(Words) * (QUERY_WORDS + STAGES * STAGE_WORDS);
  // 255 registers with two tiles, for values alone take D of them; 168 with one.
  static constexpr int BLOCKS_PER_SM = ROW_TILES == 2 ? 2 : 3;
};

// Where piece `chunk` of a row lies in it. Of K a quarter of a warp reads pieces t of two rows 2 i
// and 2 i + 1; of V pieces c and c + 4 of rows 0, 2, 4, 6 or of 1, 3, 5, 7.
SW_DEVICE int swizzled(int row, int chunk) { return chunk ^ (row >> 1 & 3) ^ (row & 1) << 2; }

template <int D, int ROW_TILES>
struct AttentionBlock {
  using Plan = AttentionPlan<D, ROW_TILES>;
  using Scores = float[ROW_TILES][KEY_TILES][4];
  static constexpr int CHUNKS = Plan::CHUNKS;

  const PrefillArgs& args;
  Words* queries;  // of this lane: [row tile][step of 16 dimensions] fragments, 32 words apart
  Words* stages;   // [stage][K, V][key][piece], swizzled
  int lane, g, t;
  int kv_head, group;
  int first_row;  // of the warp, of tokens * group
  int end;        // of the positions that the block's queries see
  int page;       // lanes 0 and 1: the numbers of the pages that are fetched next
  float values[ROW_TILES][D / 8][4];
  float max[ROW_TILES][2];   // of rows g and g + 8
  float sums[ROW_TILES][4];  // of the weights as they are multiplied: a tile of equal columns

  SW_DEVICE AttentionBlock(const PrefillArgs& args, Words* shared, int block, int kv_head)
      : args(args),
        queries(shared + thread_index() / 32 * Plan::WARP_QUERY_WORDS + thread_index() % 32),
        stages(shared + Plan::QUERY_WORDS),
        lane(static_cast<int>(thread_index() % 32)),
        g(lane / 4),
        t(lane % 4),
        kv_head(kv_head),
        group(args.heads / args.kv_heads) {
    // Through a shuffle, so that nvcc sees that it is the same in the whole warp.
    const int warp = shuffle(static_cast<int>(thread_index() / 32), 0);
    first_row = block * Plan::ROWS + warp * Plan::WARP_ROWS;
    end = seen(block * Plan::ROWS + Plan::ROWS - 1) + 1;
    SW_UNROLL
    for (int m = 0; m < ROW_TILES; ++m) {
      max[m][0] = max[m][1] = NOTHING;
      SW_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][i] = 0;
      SW_UNROLL
      for (int i = 0; i < 4 * (D / 8); ++i) values[m][i / 4][i % 4] = 0;
    }
  }

  SW_DEVICE int rows() const { return args.tokens * group; }
  // The last position that a row sees; rows behind the chunk are like the last one.
  SW_DEVICE int seen(int row) const {
    return args.first_position + minimum(row / group, args.tokens - 1);
  }
  // Of queries and out: where a row begins.
  SW_DEVICE size_t place(int row) const {
    return static_cast<size_t>(row / group * args.heads + kv_head * group + row % group) * D;
  }

  // Into shared memory, as operand A wants them; each lane reads only what it left. Piece t + 4 j
  // of a row is its share of two steps of 16 dimensions, as K's pieces are. Rows behind the chunk
  // are the last one again.
  SW_DEVICE void leave_queries() {
    SW_UNROLL
    for (int m = 0; m < ROW_TILES; ++m) {
      const int row = first_row + 16 * m + g, most = rows() - 1;
      const bfloat16* const upper = args.queries + place(minimum(row, most)) + 8 * t;
      const bfloat16* const lower = args.queries + place(minimum(row + 8, most)) + 8 * t;
      SW_UNROLL
      for (int j = 0; j < D / 32; ++j) {
        const Words a = load_16(upper + 32 * j), b = load_16(lower + 32 * j);
        Words* const to = queries + (m * (D / 16) + 2 * j) * 32;
        store_vector(to, Words{{a[0], b[0], a[1], b[1]}});
        store_vector(to + 32, Words{{a[2], b[2], a[3], b[3]}});
      }
    }
  }

  SW_DEVICE void find_pages(int stage) {
    const int number = stage * STAGE_PAGES + lane;
    page = lane < STAGE_PAGES && number * PAGE_POSITIONS < end ? args.pages[number] : 0;
  }

  SW_DEVICE Words* stage_of(int stage) const {
    return stages + static_cast<unsigned>(stage) % Plan::STAGES * Plan::STAGE_WORDS;
  }

  // K and V of a stage, by the whole block; zeros from `end` on, which are multiplied by 0.
  SW_DEVICE void fetch(int stage) {
    constexpr int AT_ONCE = ATTENTION_THREADS / CHUNKS;  // rows, a multiple of 8
    const int row = static_cast<int>(thread_index()) / CHUNKS;
    const int chunk = static_cast<int>(thread_index()) % CHUNKS;
    const int matrix_elements = args.kv_heads * PAGE_POSITIONS * D;  // K or V of a page
    const bfloat16* const first = args.pool + (kv_head * PAGE_POSITIONS + row) * D + 8 * chunk;
    Words* const to = stage_of(stage) + row * CHUNKS + swizzled(row, chunk);
    const int left = end - stage * KEYS - row;
    SW_UNROLL
    for (int at = 0; at < KEYS; at += AT_ONCE) {
      const size_t number = shuffle(page, at / PAGE_POSITIONS);
      const bfloat16* const from = first + number * 2 * matrix_elements + at % PAGE_POSITIONS * D;
      copy_async_16(to + at * CHUNKS, from, at < left);
      copy_async_16(to + at * CHUNKS + Plan::MATRIX_WORDS, from + matrix_elements, at < left);
    }
  }

  // Scores of the stage's keys, this lane's of rows g and g + 8 at keys 8 n + 2 t + {0, 1}.
  SW_DEVICE void score(const Words* keys, Scores& scores) const {
    // Rows 8 apart are swizzled alike, and piece 8 + c lies 8 behind piece c.
    const int even = g * CHUNKS + swizzled(g, t), odd = even ^ 4;
    SW_UNROLL
    for (int i = 0; i < ROW_TILES * KEY_TILES * 4; ++i)
      scores[i / 4 / KEY_TILES][i / 4 % KEY_TILES][i % 4] = 0;
    SW_UNROLL
    for (int j = 0; j < D / 32; ++j) {
      const Words* const pieces = keys + (j % 2 ? odd : even) + j / 2 * 8;
      Words a[ROW_TILES][2];
      SW_UNROLL
      for (int i = 0; i < 2 * ROW_TILES; ++i)
        a[i / 2][i % 2] = load_vector<Words>(queries + (i / 2 * (D / 16) + 2 * j + i % 2) * 32);
      SW_UNROLL
      for (int n = 0; n < KEY_TILES; ++n) {
        const auto k = load_vector<Words>(pieces + 8 * n * CHUNKS);
        SW_UNROLL
        for (int m = 0; m < ROW_TILES; ++m) {
          mma_bf16_16x8x16(scores[m][n], a[m][0].v, {k[0], k[1]});
          mma_bf16_16x8x16(scores[m][n], a[m][1].v, {k[2], k[3]});
        }
      }
    }
  }

  // Behind a row's own position there is nothing. (Query row / group is before position p of the
  // chunk just where row < p * group.)
  SW_DEVICE void hide(int first_key, Scores& scores) const {
    const int behind = (first_key + 2 * t - args.first_position) * group;
    SW_UNROLL
    for (int m = 0; m < ROW_TILES; ++m) {
      SW_UNROLL
      for (int i = 0; i < 4 * KEY_TILES; ++i) {
        const int row = first_row + 16 * m + i % 4 / 2 * 8 + g;
        if (row < behind + (i / 4 * 8 + i % 2) * group) scores[m][i / 4][i % 4] = NOTHING;
      }
    }
  }

  // -> 2^(score - max).
  SW_DEVICE void weigh(Scores& scores) {
    float before[ROW_TILES][2];
    bool is_scaled = false;
    SW_UNROLL
    for (int m = 0; m < ROW_TILES; ++m) {
      SW_UNROLL
      for (int half = 0; half < 2; ++half) {
        float most = scores[m][0][2 * half];
        SW_UNROLL
        for (int i = 1; i < 2 * KEY_TILES; ++i)
          most = maximum(most, scores[m][i / 2][2 * half + i % 2]);
        most = maximum(most, shuffle_xor(most, 1));
        most = maximum(most, shuffle_xor(most, 2));
        const bool is_above = most > max[m][half] + SLACK;
        before[m][half] = is_above ? exp2(max[m][half] - most) : 1.0f;
        if (is_above) max[m][half] = most;
        is_scaled = is_scaled || is_above;
      }
    }
    if (vote_any(is_scaled)) {
      SW_UNROLL
      for (int m = 0; m < ROW_TILES; ++m) {
        SW_UNROLL
        for (int i = 0; i < 4; ++i) sums[m][i] *= before[m][i / 2];
        SW_UNROLL
        for (int i = 0; i < 4 * (D / 8); ++i) values[m][i / 4][i % 4] *= before[m][i % 4 / 2];
      }
    }
    SW_UNROLL
    for (int m = 0; m < ROW_TILES; ++m) {
      SW_UNROLL
      for (int i = 0; i < 4 * KEY_TILES; ++i) {
        float& score = scores[m][i / 4][i % 4];
        score = exp2(score - max[m][i % 4 / 2]);
      }
    }
  }

  // Which of 8 pieces of a row of V a lane reads: column g of value tile n is the n-th dimension of
  // piece_of(g), so that in the result pieces 0-3 and 4-7 lie side by side in lanes t.
  SW_DEVICE static int piece_of(int g) { return g / 2 + g % 2 * 4; }

  SW_DEVICE void add_values(const Words* rows, const Scores& weights) {
    const Words* const even = rows + 2 * t * CHUNKS + swizzled(2 * t, piece_of(g));
    const Words* const odd = rows + (2 * t + 1) * CHUNKS + swizzled(2 * t + 1, piece_of(g));
    SW_UNROLL
    for (int step = 0; step < KEYS / 16; ++step) {
      uint32_t a[ROW_TILES][4];
      SW_UNROLL
      for (int m = 0; m < ROW_TILES; ++m) {
        SW_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float (&w)[4] = weights[m][2 * step + i / 2];
          a[m][i] = i % 2 ? pack_bfloat16(w[2], w[3]) : pack_bfloat16(w[0], w[1]);
        }
        mma_bf16_16x8x16(sums[m], a[m], {ONES, ONES});
      }
      SW_UNROLL
      for (int part = 0; part < D / 64; ++part) {
        Words v[4];  // of keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9
        SW_UNROLL
        for (int i = 0; i < 4; ++i)
          v[i] = load_vector<Words>((i % 2 ? odd : even) + (16 * step + i / 2 * 8) * CHUNKS +
                                    8 * part);
        SW_UNROLL
        for (int n = 0; n < 8; ++n) {
          uint32_t b[2];
          SW_UNROLL
          for (int i = 0; i < 2; ++i) {
            const uint32_t first = v[2 * i][n / 2], second = v[2 * i + 1][n / 2];
            b[i] = n % 2 ? upper_halves(first, second) : lower_halves(first, second);
          }
          SW_UNROLL
          for (int m = 0; m < ROW_TILES; ++m) mma_bf16_16x8x16(values[m][8 * part + n], a[m], b);
        }
      }
    }
  }

  SW_DEVICE void run() {
    const int first_seen = seen(first_row);
    const int last_seen = first_row < rows() ? seen(first_row + Plan::WARP_ROWS - 1) : -1;
    SW_UNROLL
    for (int stage = 0; stage < Plan::STAGES - 1; ++stage) {
      find_pages(stage);
      if (stage * KEYS < end) fetch(stage);
      commit_copies();
    }
    find_pages(Plan::STAGES - 1);
    leave_queries();
    for (int stage = 0; stage * KEYS < end; ++stage) {
      wait_copies<Plan::STAGES - 2>();
      barrier();  // the stage is whole, and nobody reads the one before, whose memory is filled
                  // next
      const int ahead = stage + Plan::STAGES - 1, first_key = stage * KEYS;
      if (ahead * KEYS < end) fetch(ahead);
      commit_copies();
      find_pages(ahead + 1);
      if (first_key > last_seen) continue;
      const Words* const keys = stage_of(stage);
      Scores scores;
      score(keys, scores);
      if (first_key + KEYS - 1 > first_seen) hide(first_key, scores);
      weigh(scores);
      add_values(keys + Plan::MATRIX_WORDS, scores);
    }
  }

  SW_DEVICE void write() {
    SW_UNROLL
    for (int m = 0; m < ROW_TILES; ++m) {
      SW_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float inverse = 1.0f / sums[m][2 * half];
        const int row = first_row + 16 * m + 8 * half + g;
        if (row >= rows()) continue;
        SW_UNROLL
        for (int i = 0; i < D / 32; ++i) {
          Words words;
          SW_UNROLL
          for (int n = 0; n < 8; n += 2) {
            const float first = values[m][i / 2 * 8 + n][2 * half + i % 2];
            const float second = values[m][i / 2 * 8 + n + 1][2 * half + i % 2];
            words[n / 2] = pack_bfloat16(first * inverse, second * inverse);
          }
          store_vector(args.out + place(row) + 64 * (i / 2) + 8 * (t + i % 2 * 4), words);
        }
      }
    }
  }
};

// Grid: KV heads, then blocks of rows, the last first.
template <int D, int ROW_TILES>
SW_KERNEL(ATTENTION_THREADS, (AttentionPlan<D, ROW_TILES>::BLOCKS_PER_SM))
void attend_chunk(PrefillArgs args) {
  SW_DYNAMIC_SHARED(Words, shared);
  const int block = static_cast<int>(grid_size().y - 1 - block_index().y);
  AttentionBlock<D, ROW_TILES> work(args, shared, block, static_cast<int>(block_index().x));
  work.run();
  work.write();
}

}  // namespace prefill

}  // namespace servewright::cuda
