// Projections of a decode step: D[rows, tokens] = W[rows, cols] X[cols, tokens] for a few tokens,
// bound by reading W once. Launchers and formulas: common/step_ops.h; layout of W: weights.h.
//
// Weights are operand A of mma.m16n8k16 and tokens its columns, so batch 1 and batch 32 are the
// same code, and no token sees its neighbours. A block owns ROW_TILES tiles of 16 rows and
// TOKEN_TILES tiles of 8 tokens. The columns are cut into 8 ranges that the shape alone fixes; a
// warp walks one range (of two, one behind the other) with the weights of its next stages in flight
// (cp.async), and at the end the 8 sums are added in a fixed order. Quantised weights become bf16
// integers, exactly, and the float32 scale multiplies the sum of a 32-block: no weight is rounded.
//
// RMSNorm: the product x * weight, rounded to bf16, enters the sums, and 1 / rms multiplies the
// result. In a step whoever writes x leaves that product and the squares of 16 columns each: the
// epilogue here, or the embedding. A block adds the squares up while its weights come. Single ops
// read x itself.
//
// Beside the launch before, a block fetches its first stages of weights.
//
// Bytes from DRAM: W once (a second chunk of 32 tokens finds it in L2, for chunks of the same rows
// are neighbours in the grid), X once. From L2 a block reads its tokens of X again, 2 bytes a
// column of bf16 and a quarter of squares, or 4 and the norm's 4.
//
// Error, in units of u S, u = 2^-24 and S the sum of |terms|: 43 + 2 ceil(cols / 256) quantised,
// 71 + 32 ceil(cols / 256) BF16, where an mma step rounds each of its 16 sums; tensor cores may
// truncate instead, which doubles it. The norm's prologue rounds each activation by 2^-8 at most.
//
// Sources: fragments PTX ISA 9.0 section 9.7.14; the exact dequantisation by magic numbers follows
// the idea of Kim et al. 2022 (arXiv 2211.10017), the offline reshuffle that of Marlin
// (Apache-2.0).
#pragma once
#include <type_traits>

#include "gemm_activations.cuh"
#include "gemm_weights.cuh"

namespace servewright::cuda {

SW_DEVICE Vector<float, 4> operator+(const Vector<float, 4>& a, const Vector<float, 4>& b) {
  return {{a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]}};
}

// Adds what the warps left at `sums`, `stride` apart, as RANGES prescribes.
template <int WARPS, class T>
SW_DEVICE T total(const T* sums, int stride) {
  constexpr int PARTS = RANGES / WARPS;
  const auto pair = [&](int i) {
    return PARTS == 2 ? sums[i * stride] : sums[2 * i * stride] + sums[(2 * i + 1) * stride];
  };
  T sum = pair(0);
  SW_UNROLL
  for (int i = 1; i < PAIRS; ++i) sum = sum + pair(i);
  return sum;
}

// Leaves a warp's sums of a range, or adds them to those of the pair's first, and clears them.
template <class P, bool NORM, int ROW_TILES, int TOKEN_TILES>
SW_DEVICE void leave_sums(uint8_t* shared, const Lane& at, int part,
                          float (&sums)[ROW_TILES][TOKEN_TILES][4], float (&squares)[TOKEN_TILES]) {
  auto* const all_sums =
      reinterpret_cast<Vector<float, 4>*>(shared + P::SUMS_AT) + at.warp * P::FRAGMENTS + at.lane;
  auto* const all_squares = reinterpret_cast<float*>(shared + P::SQUARES_AT) + at.warp * P::TOKENS;
  SW_UNROLL
  for (int r = 0; r < ROW_TILES; ++r) {
    SW_UNROLL
    for (int n = 0; n < TOKEN_TILES; ++n) {
      auto& to = all_sums[(r * TOKEN_TILES + n) * 32];
      float (&s)[4] = sums[r][n];
      const Vector<float, 4> sum = {{s[0], s[1], s[2], s[3]}};
      to = part == 0 ? sum : to + sum;
      SW_UNROLL
      for (int c = 0; c < 4; ++c) s[c] = 0;
    }
  }
  if constexpr (NORM) {
    SW_UNROLL
    for (int n = 0; n < TOKEN_TILES; ++n) {
      float sum = squares[n];
      squares[n] = 0;
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      float& to = all_squares[n * MMA_TOKENS + at.group];
      if (at.quad == 0) to = part == 0 ? sum : to + sum;
    }
  }
}

// x += value of a fragment (row tile `tile`, tokens from `first_token`), and what the next norm
// wants of it: x * weight, and the squares of the tile's 16 rows. By a whole warp.
SW_DEVICE void add_to_residual(const GemmArgs& args, const Lane& at, int tile, int first_token,
                               const Vector<float, 4>& value) {
  const NextNorm& next = args.next;
  float squares[2] = {};  // of tokens 2 t, 2 t + 1
  SW_UNROLL
  for (int c = 0; c < 4; ++c) {
    const int token = first_token + 2 * at.quad + c % 2;
    const int row = tile * TILE_ROWS + at.group + c / 2 * 8;
    if (token >= args.tokens || row >= args.rows) continue;
    const size_t to = static_cast<size_t>(token) * args.out_stride + row;
    float* const x = static_cast<float*>(args.out) + to;
    const float sum = *x + value[c];
    *x = sum;
    squares[c % 2] = fma(sum, sum, squares[c % 2]);
    if (next.weight) next.scaled[to] = to_bfloat16(sum * next.weight[row]);
  }
  if (!next.weight) return;
  SW_UNROLL
  for (int i = 0; i < 2; ++i) {
    SW_UNROLL
    for (int mask = 4; mask < 32; mask *= 2) squares[i] += shuffle_xor(squares[i], mask);
    const int token = first_token + 2 * at.quad + i;
    if (at.group == 0 && token < args.tokens && tile * TILE_ROWS < args.rows)
      next.squares[squares_at(token, tile, args.rows)] = squares[i];
  }
}

SW_DEVICE float silu(float x) { return x / (1.0f + exp2(-1.44269504f * x)); }

template <Weight TYPE, Projection KIND, int ROW_TILES, int TOKEN_TILES>
SW_KERNEL((Plan<TYPE, ROW_TILES, TOKEN_TILES>::THREADS),
          (Plan<TYPE, ROW_TILES, TOKEN_TILES>::BLOCKS_PER_SM))
void project(GemmArgs args) {
  using P = Plan<TYPE, ROW_TILES, TOKEN_TILES>;
  using C = Copies<TYPE, KIND, ROW_TILES>;
  constexpr int COLS = Tile<TYPE>::COLS;
  constexpr bool NORM = has_norm(KIND), SCALED = is_scaled(KIND);
  SW_DYNAMIC_SHARED(uint8_t, shared);
  SW_SHARED(float, scales, P::TOKENS);  // 1 / rms
  const Lane at = this_lane();
  const int first_token = static_cast<int>(block_index().x) * P::TOKENS;
  const int first_tile = static_cast<int>(block_index().y) * C::OUT_TILES;
  const int column_tiles = (args.cols + COLS - 1) / COLS;
  const int begin = at.warp * P::PARTS * column_tiles / RANGES;
  const int end = (at.warp + 1) * P::PARTS * column_tiles / RANGES;

  const Source source = C::source(args, at.lane, first_tile, column_tiles);
  uint8_t* const stages = shared + at.warp * (P::STAGES * P::STAGE_BYTES);
  SW_UNROLL
  for (int s = 0; s < P::STAGES - 1; ++s) {
    if (begin + s < end) C::start(stages + s * P::STAGE_BYTES, source, at.lane, begin + s);
    commit_copies();
  }
  wait_previous_launch();  // activations are its results
  let_next_launch();

  if constexpr (SCALED) leave_scales<P::WARPS>(args, at, first_token, scales);
  // The lane's first column of a 32-block; under a norm see load_normed.
  const int lane_column = NORM ? at.quad / 2 * 16 + at.quad % 2 * 4 : 8 * at.quad;
  using Element = std::conditional_t<NORM, float, bfloat16>;
  const void* const first = NORM ? static_cast<const void*>(args.x) : args.in;
  Reader<Element> reader(static_cast<const Element*>(first), args, first_token, at,
                         begin * COLS + lane_column);
  const float* norm_weight = args.norm_weight + begin * COLS + lane_column;
  int left = args.cols - begin * COLS - (NORM ? at.quad / 2 * 16 : lane_column);

  float sums[ROW_TILES][TOKEN_TILES][4] = {};
  float squares[TOKEN_TILES] = {};
  int stage = 0, column_tile = begin;
  for (int part = 0; part < P::PARTS; ++part) {
    const int part_end = (at.warp * P::PARTS + part + 1) * column_tiles / RANGES;
    for (; column_tile < part_end; ++column_tile) {
      const auto multiply = [&](int block) {
        uint32_t x[TOKEN_TILES][4];
        if constexpr (NORM)
          load_normed(reader, args.cols, norm_weight, at.quad % 2 != 0, left, x, squares);
        else
          load_activations(reader, args.cols, left, x);
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
        multiply_block<TYPE, C::OUT_TILES>(stages + stage * P::STAGE_BYTES, at, block,
                                           source.valid_tiles, x, sums);
      };
      // Unrolled where registers allow: the next block's activations load beside this one's
      // products.
      if constexpr (TOKEN_TILES == 1) {
        SW_UNROLL
        for (int block = 0; block < Tile<TYPE>::BLOCKS; ++block) multiply(block);
      } else {
        for (int block = 0; block < Tile<TYPE>::BLOCKS; ++block) multiply(block);
      }
      stage = stage + 1 == P::STAGES ? 0 : stage + 1;
    }
    if constexpr (P::PARTS == 1) {
      wait_copies<0>();
      barrier();  // all stages are read: the sums take their memory
    }
    leave_sums<P, NORM>(shared, at, part, sums, squares);
  }
  wait_copies<0>();
  barrier();

  const auto* const all_sums = reinterpret_cast<const Vector<float, 4>*>(shared + P::SUMS_AT);
  const auto* const all_squares = reinterpret_cast<const float*>(shared + P::SQUARES_AT);
  for (int fragment = static_cast<int>(thread_index()); fragment < C::OUT_TILES * TOKEN_TILES * 32;
       fragment += P::THREADS) {
    const auto value = total<P::WARPS>(all_sums + fragment, P::FRAGMENTS);
    Vector<float, 4> up = {};
    if constexpr (has_two_matrices(KIND))
      up = total<P::WARPS>(all_sums + P::FRAGMENTS / 2 + fragment, P::FRAGMENTS);
    const int n = fragment / 32 % TOKEN_TILES, tile = first_tile + fragment / 32 / TOKEN_TILES;
    if constexpr (KIND == Projection::RESIDUAL) {
      add_to_residual(args, at, tile, first_token + n * MMA_TOKENS, value);
    } else {
      SW_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int column = n * MMA_TOKENS + 2 * at.quad + c % 2, token = first_token + column;
        const int row = tile * TILE_ROWS + at.group + c / 2 * 8;
        if (token >= args.tokens || row >= args.rows) continue;
        const size_t to = static_cast<size_t>(token) * args.out_stride + row;
        float scale;
        if constexpr (SCALED)
          scale = scales[column];
        else
          scale = rsqrt(
              fma(total<P::WARPS>(all_squares + column, P::TOKENS), args.inverse_cols, args.eps));
        if constexpr (has_two_matrices(KIND))
          static_cast<bfloat16*>(args.out)[to] =
              to_bfloat16(silu(value[c] * scale) * (up[c] * scale));
        else
          static_cast<float*>(args.out)[to] = value[c] * scale;
      }
    }
  }
}

// ---- Launching. Each weight type is a translation unit of its own: gemm_*.cu. ----

template <Weight TYPE, Projection KIND, int ROW_TILES, int TOKEN_TILES>
int launch_tiled(const GemmArgs& args, Stream stream, Start start) {
  using P = Plan<TYPE, ROW_TILES, TOKEN_TILES>;
  constexpr int OUT_ROWS = TILE_ROWS * (has_two_matrices(KIND) ? ROW_TILES / 2 : ROW_TILES);
  const Index3 grid((args.tokens + P::TOKENS - 1) / P::TOKENS,
                    (args.rows + OUT_ROWS - 1) / OUT_ROWS);
  return SW_LAUNCH_AT(start, (project<TYPE, KIND, ROW_TILES, TOKEN_TILES>), grid, P::THREADS,
                      P::SHARED_BYTES, stream, args);
}

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue

// What is compiled: more row tiles where more tokens share a block, for they all read the same
// activations. A block has a tile of each matrix at least.
constexpr bool is_compiled(Projection kind, Tiling tiling) {
  const int r = tiling.row_tiles, t = tiling.token_tiles;
  if (has_norm(kind)) return r == 2 && (t == 1 || t == 2 || t == 4);
  return (r == 1 && t == 1 && !has_two_matrices(kind)) ||
         ((r == 2 || r == 4) && (t == 1 || t == 2 || t == 4));
}

template <Weight TYPE, Projection KIND, int ROW_TILES, int TOKEN_TILES>
int launch_if_compiled(const GemmArgs& args, Tiling tiling, Stream stream, Start start) {
  if constexpr (is_compiled(KIND, {ROW_TILES, TOKEN_TILES})) {
    if (tiling.row_tiles == ROW_TILES && tiling.token_tiles == TOKEN_TILES)
      return launch_tiled<TYPE, KIND, ROW_TILES, TOKEN_TILES>(args, stream, start);
  }
  return INVALID_VALUE;
}

template <Weight TYPE, Projection KIND, int TOKEN_TILES>
int launch_rows(const GemmArgs& args, Tiling tiling, Stream stream, Start start) {
  switch (tiling.row_tiles) {
    case 1:
      return launch_if_compiled<TYPE, KIND, 1, TOKEN_TILES>(args, tiling, stream, start);
    case 2:
      return launch_if_compiled<TYPE, KIND, 2, TOKEN_TILES>(args, tiling, stream, start);
    default:
      return launch_if_compiled<TYPE, KIND, 4, TOKEN_TILES>(args, tiling, stream, start);
  }
}

template <Weight TYPE, Projection KIND>
int launch_kind(const GemmArgs& args, Tiling tiling, Stream stream, Start start) {
  switch (tiling.token_tiles) {
    case 1:
      return launch_rows<TYPE, KIND, 1>(args, tiling, stream, start);
    case 2:
      return launch_rows<TYPE, KIND, 2>(args, tiling, stream, start);
    default:
      return launch_rows<TYPE, KIND, 4>(args, tiling, stream, start);
  }
}

template <Weight TYPE>
int launch_type(Projection kind, const GemmArgs& args, Tiling tiling, Stream stream, Start start) {
  switch (kind) {
    case Projection::NORMED:
      return launch_kind<TYPE, Projection::NORMED>(args, tiling, stream, start);
    case Projection::RESIDUAL:
      return launch_kind<TYPE, Projection::RESIDUAL>(args, tiling, stream, start);
    case Projection::GATE_UP:
      return launch_kind<TYPE, Projection::GATE_UP>(args, tiling, stream, start);
    case Projection::SCALED:
      return launch_kind<TYPE, Projection::SCALED>(args, tiling, stream, start);
    default:
      return launch_kind<TYPE, Projection::SCALED_GATE_UP>(args, tiling, stream, start);
  }
}

extern template int launch_type<Weight::BF16>(Projection, const GemmArgs&, Tiling, Stream, Start);
extern template int launch_type<Weight::Q8_0>(Projection, const GemmArgs&, Tiling, Stream, Start);
extern template int launch_type<Weight::Q4_0>(Projection, const GemmArgs&, Tiling, Stream, Start);
extern template int launch_type<Weight::Q4_1>(Projection, const GemmArgs&, Tiling, Stream, Start);

}  // namespace servewright::cuda
