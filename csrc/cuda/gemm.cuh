// Projections of a decode step: D[rows, tokens] = W[rows, cols] X[cols, tokens] for a few tokens,
// bound by reading W once. Launchers and formulas: common/step_ops.h; layout of W: weights.h.
//
// Weights are operand A of mma.m16n8k16 and tokens its columns, so batch 1 and batch 32 are the
// same code, and no token sees its neighbours. A block owns ROW_TILES tiles of 16 rows and
// TOKEN_TILES tiles of 8 tokens. Its 8 warps split the columns into 8 ranges that the shape alone
// fixes; each walks its range with the weights of the next stages in flight (cp.async), and at the
// end the 8 partial sums are added in warp order. Quantised weights become bf16 integers, exactly,
// and the float32 scale multiplies the sum of a 32-block: no weight is rounded.
//
// RMSNorm is part of reading X: the product x * weight, rounded to bf16, enters the sums, the
// squares of x are summed beside it, and 1 / rms multiplies the result.
//
// Bytes a launch reads from DRAM: W once (a second chunk of 32 tokens finds it in L2: chunks of the
// same rows are neighbours in the grid), X once. From L2 a block reads X again: per column and row
// of W, 4 (8 for the first 8 tokens: the norm's weight) bytes * tokens / (16 * ROW_TILES).
//
// Error of an output, u = 2^-24, with S = sum_k |W x|: activations rounded to bf16 2^-8 S (only
// where the prologue rounds; bf16 inputs are exact), sums (cols / 16 + 16) roundings of at most
// 2 u S each on tensor cores, which may truncate, and one scale product a 32-block.
//
// Sources: fragments PTX ISA 9.0 section 9.7.14; the exact dequantisation by magic numbers follows
// the idea of Kim et al. 2022 (arXiv 2211.10017), the offline reshuffle that of Marlin (Apache-2.0).
#pragma once
#include <type_traits>

#include "../common/device.cuh"
#include "../common/step_ops.h"
#include "weights.h"

namespace servewright::cuda {

using namespace servewright::device;

enum class Projection : int { NORMED, RESIDUAL, GATE_UP };

struct GemmArgs {
  const uint8_t* weights;
  const uint8_t* up;  // GATE_UP only
  int rows, cols, tokens;
  const bfloat16* in;        // RESIDUAL: [tokens, cols]
  const float* x;            // otherwise [tokens, cols]
  const float* norm_weight;  // [cols]
  float eps, inverse_cols;
  void* out;
  int out_stride;
};

constexpr int WARPS = 8;  // ranges of the columns: part of the result's bits, so never tuned
constexpr int THREADS = 32 * WARPS;
constexpr int MMA_TOKENS = 8;
// Two blocks fit an SM of the A100 (164 KB), three one of the H100 (227 KB).
constexpr int PIPELINE_BYTES = 72 << 10;
constexpr int MAX_STAGES = 8;

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a < b ? b : a; }

template <Weight TYPE, int ROW_TILES, int TOKEN_TILES>
struct Plan {
  static constexpr int STAGE_BYTES = ROW_TILES * Tile<TYPE>::BYTES;  // of one warp
  static constexpr int STAGES = smaller(MAX_STAGES, PIPELINE_BYTES / (WARPS * STAGE_BYTES));
  static constexpr int TOKENS = TOKEN_TILES * MMA_TOKENS;
  static constexpr int FRAGMENTS = ROW_TILES * TOKEN_TILES * 32;  // of 4 floats, of one warp
  static constexpr int SUMS_BYTES = WARPS * FRAGMENTS * 16;
  static constexpr int SHARED_BYTES =
      larger(WARPS * STAGES * STAGE_BYTES, SUMS_BYTES + WARPS * TOKENS * 4);
  // 80 registers suffice for one token tile; the accumulators of more need 128.
  static constexpr int BLOCKS_PER_SM = TOKEN_TILES == 1 ? 3 : 2;
  static_assert(STAGES >= 2, "a stage is in flight while another is multiplied");
};

struct Lane {
  int warp, lane, group, quad;  // group = lane / 4, quad = lane % 4: g and t of the fragments
};

SW_DEVICE Lane this_lane() {
  const int thread = static_cast<int>(thread_index()), lane = thread % 32;
  return {thread / 32, lane, lane / 4, lane % 4};
}

// ---- Activations: of each token tile this lane's columns 8 t .. 8 t + 7 of token g, as pairs. ----

// Where this lane reads next.
template <class T>
struct Reader {
  const T* first;   // of the lane's token in token tile 0
  int tokens_left;  // from that token to the last one

  SW_DEVICE Reader(const T* x, const GemmArgs& args, int first_token, const Lane& at, int column) {
    const int token = minimum(first_token + at.group, args.tokens - 1);
    first = x + static_cast<size_t>(token) * args.cols + column;
    tokens_left = args.tokens - 1 - token;
  }
  // In token tile n. Past the last token it is the last one again, whose results nobody stores.
  SW_DEVICE const T* row(int n, int cols) const {
    return first + minimum(n * MMA_TOKENS, tokens_left) * cols;
  }
};

SW_DEVICE Vector<uint32_t, 4> load_or_zeros(const void* p, bool valid) {
  return valid ? load_16(p) : Vector<uint32_t, 4>{{0, 0, 0, 0}};
}

// `left`: columns from this lane's first one to the end of the matrix.
template <int TOKEN_TILES>
SW_DEVICE void load_activations(const Reader<bfloat16>& in, int cols, int left,
                                uint32_t (&pairs)[TOKEN_TILES][4]) {
  SW_UNROLL
  for (int n = 0; n < TOKEN_TILES; ++n) {
    const auto v = load_or_zeros(in.row(n, cols), left > 0);
    SW_UNROLL
    for (int i = 0; i < 4; ++i) pairs[n][i] = v[i];
  }
}

// x * weight as bf16 pairs. A lane's 8 floats are a sector of 32 bytes; that each load takes whole
// sectors, the two lanes of a pair load both halves of the even lane's sector, then of the odd
// lane's, and swap halves when they are bf16.
SW_DEVICE void scale_half(const Vector<uint32_t, 4>& x, const Vector<uint32_t, 4>& weight,
                          uint32_t (&pairs)[2], float& squares) {
  float y[4];
  SW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float value = bit_cast<float>(x[i]);
    squares = fma(value, value, squares);
    y[i] = value * bit_cast<float>(weight[i]);
  }
  pairs[0] = pack_bfloat16(y[0], y[1]);
  pairs[1] = pack_bfloat16(y[2], y[3]);
}

template <int TOKEN_TILES>
SW_DEVICE void load_normed(const Reader<float>& in, int cols, const float* weight,
                           bool odd, int left, uint32_t (&pairs)[TOKEN_TILES][4],
                           float (&squares)[TOKEN_TILES]) {
  const bool even_valid = left > 0, odd_valid = left > 8;
  const auto even_weight = load_or_zeros(weight, even_valid);
  const auto odd_weight = load_or_zeros(weight + 8, odd_valid);
  SW_UNROLL
  for (int n = 0; n < TOKEN_TILES; ++n) {
    const auto even_x = load_or_zeros(in.row(n, cols), even_valid);
    const auto odd_x = load_or_zeros(in.row(n, cols) + 8, odd_valid);
    uint32_t even_pairs[2], odd_pairs[2];
    scale_half(even_x, even_weight, even_pairs, squares[n]);
    scale_half(odd_x, odd_weight, odd_pairs, squares[n]);
    SW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t got = shuffle_xor(odd ? even_pairs[i] : odd_pairs[i], 1);
      pairs[n][i] = odd ? got : even_pairs[i];
      pairs[n][2 + i] = odd ? odd_pairs[i] : got;
    }
  }
}

// ---- Weights: a 32-block of a tile as the A fragments of its two steps. ----

// (128 + q) - 128 - offset as two bf16, exact.
constexpr uint32_t BFLOAT16_128 = 0x43004300u, BFLOAT16_136 = 0x43084308u;

SW_DEVICE uint32_t byte_pair(uint32_t word) {
  // Two's complement: the low 7 bits minus 128 times the sign; both terms are in 128 .. 256.
  return sub_bfloat16x2(mask_or(word, 0x007f007fu, BFLOAT16_128),
                        mask_or(word, 0x00800080u, BFLOAT16_128));
}

template <Weight TYPE>
SW_DEVICE void load_fragments(const uint8_t* tile, const Lane& at, int block,
                              uint32_t (&a)[2][4]) {
  if constexpr (TYPE == Weight::BF16) {
    SW_UNROLL
    for (int m = 0; m < 2; ++m) {
      const auto v =
          load_vector<Vector<uint32_t, 4>>(tile + m * PIECE_BYTES + 16 * at.lane);
      SW_UNROLL
      for (int i = 0; i < 4; ++i) a[m][i] = v[i];
    }
  } else if constexpr (TYPE == Weight::Q8_0) {
    const auto v = load_vector<Vector<uint32_t, 4>>(tile + block * PIECE_BYTES + 16 * at.lane);
    SW_UNROLL
    for (int m = 0; m < 2; ++m)
      SW_UNROLL
      for (int i = 0; i < 4; ++i) a[m][i] = byte_pair(v[i % 2 * 2 + m] >> (i / 2 * 8));
  } else {
    constexpr uint32_t offset = TYPE == Weight::Q4_0 ? BFLOAT16_136 : BFLOAT16_128;
    const auto v =
        load_vector<Vector<uint32_t, 2>>(tile + 16 * at.lane + 8 * block);
    SW_UNROLL
    for (int m = 0; m < 2; ++m)
      SW_UNROLL
      for (int i = 0; i < 4; ++i)
        a[m][i] = sub_bfloat16x2(nibbles_to_bfloat16(v[i % 2], 4 * (2 * m + i / 2)), offset);
  }
}

// d (and m) of the rows g and g + 8.
struct Scales {
  float d[2], m[2];
};

template <Weight TYPE>
SW_DEVICE Scales load_scales(const uint8_t* tile, const Lane& at, int block) {
  constexpr int COUNT = Tile<TYPE>::SCALES;
  const auto v = load_vector<Vector<uint16_t, 2 * COUNT>>(
      tile + Tile<TYPE>::PIECES * PIECE_BYTES + (at.group * 2 + block) * 4 * COUNT);
  Scales out;
  SW_UNROLL
  for (int h = 0; h < 2; ++h) {
    out.d[h] = half_to_float(v[h * COUNT]);
    out.m[h] = COUNT == 2 ? half_to_float(v[h * COUNT + COUNT - 1]) : 0.0f;
  }
  return out;
}

template <Weight TYPE, int ROW_TILES, int TOKEN_TILES>
SW_DEVICE void multiply_block(const uint8_t* stage, const Lane& at, int block,
                              const uint32_t (&x)[TOKEN_TILES][4],
                              float (&sums)[ROW_TILES][TOKEN_TILES][4]) {
  constexpr uint32_t ONES = 0x3f803f80u;
  float column_sums[TOKEN_TILES][4] = {};  // Q4_1: of the token's x over the block, in 0 and 1
  if constexpr (TYPE == Weight::Q4_1) {
    const uint32_t ones[4] = {ONES, ONES, ONES, ONES};
    SW_UNROLL
    for (int n = 0; n < TOKEN_TILES; ++n)
      SW_UNROLL
      for (int m = 0; m < 2; ++m)
        mma_bf16_16x8x16(column_sums[n], ones, {x[n][2 * m], x[n][2 * m + 1]});
  }
  SW_UNROLL
  for (int r = 0; r < ROW_TILES; ++r) {
    const uint8_t* tile = stage + r * Tile<TYPE>::BYTES;
    uint32_t a[2][4];
    load_fragments<TYPE>(tile, at, block, a);
    if constexpr (TYPE == Weight::BF16) {
      SW_UNROLL
      for (int n = 0; n < TOKEN_TILES; ++n)
        SW_UNROLL
        for (int m = 0; m < 2; ++m)
          mma_bf16_16x8x16(sums[r][n], a[m], {x[n][2 * m], x[n][2 * m + 1]});
    } else {
      const Scales scales = load_scales<TYPE>(tile, at, block);
      SW_UNROLL
      for (int n = 0; n < TOKEN_TILES; ++n) {
        float partial[4] = {};
        SW_UNROLL
        for (int m = 0; m < 2; ++m)
          mma_bf16_16x8x16(partial, a[m], {x[n][2 * m], x[n][2 * m + 1]});
        SW_UNROLL
        for (int c = 0; c < 4; ++c) {
          sums[r][n][c] = fma(scales.d[c / 2], partial[c], sums[r][n][c]);
          if constexpr (TYPE == Weight::Q4_1)
            sums[r][n][c] = fma(scales.m[c / 2], column_sums[n][c % 2], sums[r][n][c]);
        }
      }
    }
  }
}

// ---- The block. ----

// Where this lane's 16-byte pieces of a block's row tiles begin, at column tile 0. GATE_UP: half of
// the tiles are of each matrix.
struct Source {
  const uint8_t* first;
  const uint8_t* second;  // GATE_UP only
  const uint8_t* scales;  // of the row tile whose scales this lane copies; null: of none
  size_t row_tile_bytes;
  int valid_tiles;  // of each matrix: row tiles past the end are not read, their weights are zero
};

template <Weight TYPE, Projection KIND, int ROW_TILES>
struct Copies {
  using T = Tile<TYPE>;
  static constexpr int OUT_TILES = KIND == Projection::GATE_UP ? ROW_TILES / 2 : ROW_TILES;
  static constexpr int SCALE_LANES = (T::BYTES - T::PIECES * PIECE_BYTES) / 16;  // of a row tile

  SW_DEVICE static Source source(const GemmArgs& args, int lane, int first_tile,
                                 int column_tiles) {
    Source out;
    out.row_tile_bytes = static_cast<size_t>(column_tiles) * T::BYTES;
    out.first = args.weights + first_tile * out.row_tile_bytes;
    out.second = KIND == Projection::GATE_UP ? args.up + first_tile * out.row_tile_bytes : nullptr;
    out.valid_tiles = (args.rows + TILE_ROWS - 1) / TILE_ROWS - first_tile;
    out.scales = nullptr;
    if constexpr (SCALE_LANES > 0) {
      const int r = lane / SCALE_LANES;
      if (r < ROW_TILES)
        out.scales = (r < OUT_TILES ? out.first : out.second) +
                     r % OUT_TILES * out.row_tile_bytes + T::PIECES * PIECE_BYTES +
                     lane % SCALE_LANES * 16;
    }
    out.first += lane * 16;
    out.second += lane * 16;
    return out;
  }

  // Copies one column tile of each row tile to [row tile][Tile::BYTES].
  SW_DEVICE static void start(uint8_t* stage, const Source& source, int lane, int column_tile) {
    const size_t column = static_cast<size_t>(column_tile) * T::BYTES;
    SW_UNROLL
    for (int r = 0; r < ROW_TILES; ++r) {
      const uint8_t* from = (r < OUT_TILES ? source.first : source.second) +
                            (r % OUT_TILES * source.row_tile_bytes + column);
      SW_UNROLL
      for (int piece = 0; piece < T::PIECES; ++piece)
        copy_async_16(stage + r * T::BYTES + piece * PIECE_BYTES + lane * 16,
                      from + piece * PIECE_BYTES, r % OUT_TILES < source.valid_tiles);
    }
    if constexpr (SCALE_LANES > 0) {
      const int r = lane / SCALE_LANES;
      if (r < ROW_TILES)
        copy_async_16(
            stage + r * T::BYTES + T::PIECES * PIECE_BYTES + lane % SCALE_LANES * 16,
            source.scales + column, r % OUT_TILES < source.valid_tiles);
    }
  }
};

// Adds a fragment's 8 partial sums in warp order.
SW_DEVICE Vector<float, 4> total(const Vector<float, 4>* partials, int fragment, int fragments) {
  Vector<float, 4> sum = partials[fragment];
  SW_UNROLL
  for (int w = 1; w < WARPS; ++w) {
    const Vector<float, 4> next = partials[w * fragments + fragment];
    SW_UNROLL
    for (int c = 0; c < 4; ++c) sum[c] += next[c];
  }
  return sum;
}

SW_DEVICE float silu(float x) { return x / (1.0f + exp2(-1.44269504f * x)); }

template <Weight TYPE, Projection KIND, int ROW_TILES, int TOKEN_TILES>
SW_KERNEL(THREADS, (Plan<TYPE, ROW_TILES, TOKEN_TILES>::BLOCKS_PER_SM))
void project(GemmArgs args) {
  using P = Plan<TYPE, ROW_TILES, TOKEN_TILES>;
  constexpr int COLS = Tile<TYPE>::COLS;
  using C = Copies<TYPE, KIND, ROW_TILES>;
  constexpr int OUT_TILES = C::OUT_TILES;
  SW_DYNAMIC_SHARED(uint8_t, shared);
  const Lane at = this_lane();
  const int first_token = static_cast<int>(block_index().x) * P::TOKENS;
  const int first_tile = static_cast<int>(block_index().y) * OUT_TILES;
  const int column_tiles = (args.cols + COLS - 1) / COLS;
  const int begin = at.warp * column_tiles / WARPS, end = (at.warp + 1) * column_tiles / WARPS;

  const Source source = C::source(args, at.lane, first_tile, column_tiles);
  uint8_t* const stages = shared + at.warp * (P::STAGES * P::STAGE_BYTES);
  SW_UNROLL
  for (int s = 0; s < P::STAGES - 1; ++s) {
    if (begin + s < end)
      C::start(stages + s * P::STAGE_BYTES, source, at.lane, begin + s);
    commit_copies();
  }

  float sums[ROW_TILES][TOKEN_TILES][4] = {};
  float squares[TOKEN_TILES] = {};
  // The lane's first column of a 32-block: with NORMED's swap of halves, see load_normed.
  const bool odd = at.quad % 2 != 0;
  const int lane_column =
      begin * COLS +
      (KIND == Projection::RESIDUAL ? 8 * at.quad : at.quad / 2 * 16 + at.quad % 2 * 4);
  using Element = std::conditional_t<KIND == Projection::RESIDUAL, bfloat16, float>;
  const void* const first = KIND == Projection::RESIDUAL ? static_cast<const void*>(args.in) : args.x;
  Reader<Element> reader(static_cast<const Element*>(first), args, first_token, at,
                                      lane_column);
  const float* norm_weight = args.norm_weight + lane_column;
  int left = args.cols - lane_column + (KIND == Projection::RESIDUAL ? 0 : at.quad % 2 * 4);
  int stage = 0;
  for (int column_tile = begin; column_tile < end; ++column_tile) {
    const auto multiply = [&](int block) {
      uint32_t x[TOKEN_TILES][4];
      if constexpr (KIND == Projection::RESIDUAL)
        load_activations(reader, args.cols, left, x);
      else
        load_normed(reader, args.cols, norm_weight, odd, left, x, squares);
      reader.first += BLOCK_COLS;
      norm_weight += BLOCK_COLS;
      left -= BLOCK_COLS;
      if (block == 0) {
        // One barrier a stage: behind it this stage is whole, and no lane still reads the stage
        // before, whose memory the next copies take.
        wait_copies<P::STAGES - 2>();
        warp_barrier();
        const int ahead = column_tile + P::STAGES - 1;
        const int slot = stage == 0 ? P::STAGES - 1 : stage - 1;
        if (ahead < end) C::start(stages + slot * P::STAGE_BYTES, source, at.lane, ahead);
        commit_copies();
      }
      multiply_block<TYPE>(stages + stage * P::STAGE_BYTES, at, block, x, sums);
    };
    // Unrolled where registers allow: the next block's activations load beside this one's products.
    if constexpr (TOKEN_TILES == 1) {
      SW_UNROLL
      for (int block = 0; block < Tile<TYPE>::BLOCKS; ++block) multiply(block);
    } else {
      for (int block = 0; block < Tile<TYPE>::BLOCKS; ++block) multiply(block);
    }
    stage = stage + 1 == P::STAGES ? 0 : stage + 1;
  }
  wait_copies<0>();
  barrier();  // all stages are read: their memory takes the partial sums

  auto* const partials = reinterpret_cast<Vector<float, 4>*>(shared);
  auto* const all_squares = reinterpret_cast<float*>(shared + P::SUMS_BYTES);
  SW_UNROLL
  for (int r = 0; r < ROW_TILES; ++r)
    SW_UNROLL
    for (int n = 0; n < TOKEN_TILES; ++n) {
      const float(&s)[4] = sums[r][n];
      partials[at.warp * P::FRAGMENTS + (r * TOKEN_TILES + n) * 32 + at.lane] = {
          {s[0], s[1], s[2], s[3]}};
    }
  if constexpr (KIND != Projection::RESIDUAL) {
    SW_UNROLL
    for (int n = 0; n < TOKEN_TILES; ++n) {
      float sum = squares[n];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (at.quad == 0) all_squares[at.warp * P::TOKENS + n * MMA_TOKENS + at.group] = sum;
    }
  }
  barrier();

  for (int fragment = static_cast<int>(thread_index()); fragment < OUT_TILES * TOKEN_TILES * 32;
       fragment += THREADS) {
    Vector<float, 4> value = total(partials, fragment, P::FRAGMENTS), up = {};
    if constexpr (KIND == Projection::GATE_UP)
      up = total(partials, fragment + P::FRAGMENTS / 2, P::FRAGMENTS);
    const int n = fragment / 32 % TOKEN_TILES, r = fragment / 32 / TOKEN_TILES;
    SW_UNROLL
    for (int c = 0; c < 4; ++c) {
      const int column = n * MMA_TOKENS + 2 * at.quad + c % 2, token = first_token + column;
      const int row = (first_tile + r) * TILE_ROWS + at.group + c / 2 * 8;
      if (token >= args.tokens || row >= args.rows) continue;
      const size_t to = static_cast<size_t>(token) * args.out_stride + row;
      if constexpr (KIND == Projection::RESIDUAL) {
        static_cast<float*>(args.out)[to] += value[c];
      } else {
        float sum = all_squares[column];
        SW_UNROLL
        for (int w = 1; w < WARPS; ++w) sum += all_squares[w * P::TOKENS + column];
        const float scale = rsqrt(fma(sum, args.inverse_cols, args.eps));
        if constexpr (KIND == Projection::NORMED)
          static_cast<float*>(args.out)[to] = value[c] * scale;
        else
          static_cast<bfloat16*>(args.out)[to] =
              to_bfloat16(silu(value[c] * scale) * (up[c] * scale));
      }
    }
  }
}

// ---- Launching. Each weight type is a translation unit of its own: gemm_*.cu. ----

template <Weight TYPE, Projection KIND, int ROW_TILES, int TOKEN_TILES>
int launch_tiled(const GemmArgs& args, Stream stream) {
  using P = Plan<TYPE, ROW_TILES, TOKEN_TILES>;
  constexpr int OUT_ROWS = TILE_ROWS * (KIND == Projection::GATE_UP ? ROW_TILES / 2 : ROW_TILES);
  const Index3 grid((args.tokens + P::TOKENS - 1) / P::TOKENS,
                    (args.rows + OUT_ROWS - 1) / OUT_ROWS);
  return SW_LAUNCH((project<TYPE, KIND, ROW_TILES, TOKEN_TILES>), grid, THREADS, P::SHARED_BYTES,
                   stream, args);
}

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue

// What is compiled: more row tiles where more tokens share a block, for they all read the same
// activations. A block of GATE_UP has a tile of each matrix at least.
constexpr bool is_compiled(Projection kind, Tiling tiling) {
  const int r = tiling.row_tiles, t = tiling.token_tiles;
  return (r == 1 && t == 1 && kind != Projection::GATE_UP) ||
         ((r == 2 || r == 4) && (t == 1 || t == 2 || t == 4));
}

template <Weight TYPE, Projection KIND, int ROW_TILES, int TOKEN_TILES>
int launch_if_compiled(const GemmArgs& args, Tiling tiling, Stream stream) {
  if constexpr (is_compiled(KIND, {ROW_TILES, TOKEN_TILES})) {
    if (tiling.row_tiles == ROW_TILES && tiling.token_tiles == TOKEN_TILES)
      return launch_tiled<TYPE, KIND, ROW_TILES, TOKEN_TILES>(args, stream);
  }
  return INVALID_VALUE;
}

template <Weight TYPE, Projection KIND, int TOKEN_TILES>
int launch_rows(const GemmArgs& args, Tiling tiling, Stream stream) {
  switch (tiling.row_tiles) {
    case 1:
      return launch_if_compiled<TYPE, KIND, 1, TOKEN_TILES>(args, tiling, stream);
    case 2:
      return launch_if_compiled<TYPE, KIND, 2, TOKEN_TILES>(args, tiling, stream);
    default:
      return launch_if_compiled<TYPE, KIND, 4, TOKEN_TILES>(args, tiling, stream);
  }
}

template <Weight TYPE, Projection KIND>
int launch_kind(const GemmArgs& args, Tiling tiling, Stream stream) {
  switch (tiling.token_tiles) {
    case 1:
      return launch_rows<TYPE, KIND, 1>(args, tiling, stream);
    case 2:
      return launch_rows<TYPE, KIND, 2>(args, tiling, stream);
    default:
      return launch_rows<TYPE, KIND, 4>(args, tiling, stream);
  }
}

template <Weight TYPE>
int launch_type(Projection kind, const GemmArgs& args, Tiling tiling, Stream stream) {
  switch (kind) {
    case Projection::NORMED:
      return launch_kind<TYPE, Projection::NORMED>(args, tiling, stream);
    case Projection::RESIDUAL:
      return launch_kind<TYPE, Projection::RESIDUAL>(args, tiling, stream);
    default:
      return launch_kind<TYPE, Projection::GATE_UP>(args, tiling, stream);
  }
}

extern template int launch_type<Weight::BF16>(Projection, const GemmArgs&, Tiling, Stream);
extern template int launch_type<Weight::Q8_0>(Projection, const GemmArgs&, Tiling, Stream);
extern template int launch_type<Weight::Q4_0>(Projection, const GemmArgs&, Tiling, Stream);
extern template int launch_type<Weight::Q4_1>(Projection, const GemmArgs&, Tiling, Stream);

}  // namespace servewright::cuda
