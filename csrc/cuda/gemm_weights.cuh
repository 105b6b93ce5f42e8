// Operand A: column tiles of packed weights copied to shared memory, and a 32-block of a tile as
// the fragments of its two mma steps.
#pragma once
#include "gemm_plan.cuh"

namespace servewright::cuda {

// (128 + q) - 128 - offset as two bf16, exact.
constexpr uint32_t BFLOAT16_128 = 0x43004300u, BFLOAT16_136 = 0x43084308u;

SW_DEVICE uint32_t byte_pair(uint32_t word) {
  // Two's complement: the low 7 bits minus 128 times the sign; both terms are in 128 .. 256.
  return sub_bfloat16x2(mask_or(word, 0x007f007fu, BFLOAT16_128),
                        mask_or(word, 0x00800080u, BFLOAT16_128));
}

template <Weight TYPE>
SW_DEVICE void load_fragments(const uint8_t* tile, const Lane& at, int block, uint32_t (&a)[2][4]) {
  if constexpr (TYPE == Weight::BF16) {
    SW_UNROLL
    for (int m = 0; m < 2; ++m) {
      const auto v = load_vector<Vector<uint32_t, 4>>(tile + m * PIECE_BYTES + 16 * at.lane);
      SW_UNROLL
      for (int i = 0; i < 4; ++i) a[m][i] = v[i];
    }
  } else if constexpr (TYPE == Weight::Q8_0) {
    const auto v = load_vector<Vector<uint32_t, 4>>(tile + block * PIECE_BYTES + 16 * at.lane);
    SW_UNROLL
    for (int m = 0; m < 2; ++m) {
      SW_UNROLL
      for (int i = 0; i < 4; ++i) a[m][i] = byte_pair(v[i % 2 * 2 + m] >> (i / 2 * 8));
    }
  } else {
    constexpr uint32_t offset = TYPE == Weight::Q4_0 ? BFLOAT16_136 : BFLOAT16_128;
    const auto v = load_vector<Vector<uint32_t, 2>>(tile + block * (PIECE_BYTES / 2) + 8 * at.lane);
    SW_UNROLL
    for (int m = 0; m < 2; ++m) {
      SW_UNROLL
      for (int i = 0; i < 4; ++i)
        a[m][i] = sub_bfloat16x2(nibbles_to_bfloat16(v[i % 2], 4 * (2 * m + i / 2)), offset);
    }
  }
}

// d (and m) of the rows g and g + 8.
struct Scales {
  float d[2], m[2];
};

template <Weight TYPE>
SW_DEVICE Scales load_scales(const uint8_t* tile, const Lane& at, int block) {
  constexpr int COUNT = Tile<TYPE>::SCALES;
  const auto v = load_vector<Vector<uint16_t, 2 * COUNT>>(tile + Tile<TYPE>::PIECES * PIECE_BYTES +
                                                          (at.group * 2 + block) * 4 * COUNT);
  Scales out;
  SW_UNROLL
  for (int h = 0; h < 2; ++h) {
    out.d[h] = half_to_float(v[h * COUNT]);
    out.m[h] = COUNT == 2 ? half_to_float(v[h * COUNT + COUNT - 1]) : 0.0f;
  }
  return out;
}

template <Weight TYPE, int OUT_TILES, int ROW_TILES, int TOKEN_TILES>
SW_DEVICE void multiply_block(const uint8_t* stage, const Lane& at, int block, int valid_tiles,
                              const uint32_t (&x)[TOKEN_TILES][4],
                              float (&sums)[ROW_TILES][TOKEN_TILES][4]) {
  constexpr uint32_t ONES = 0x3f803f80u;
  float column_sums[TOKEN_TILES][4] = {};  // Q4_1: of the token's x over the block, in 0 and 1
  if constexpr (TYPE == Weight::Q4_1) {
    const uint32_t ones[4] = {ONES, ONES, ONES, ONES};
    SW_UNROLL
    for (int n = 0; n < TOKEN_TILES; ++n) {
      SW_UNROLL
      for (int m = 0; m < 2; ++m)
        mma_bf16_16x8x16(column_sums[n], ones, {x[n][2 * m], x[n][2 * m + 1]});
    }
  }
  SW_UNROLL
  for (int r = 0; r < ROW_TILES; ++r) {
    // A border for the compiler's scheduling, which else unpacks many tiles at once and spills.
    constexpr bool BORDER = ROW_TILES * TOKEN_TILES > (TYPE == Weight::Q4_1 ? 1 : 2);
    if (BORDER && r % OUT_TILES >= valid_tiles) continue;
    const uint8_t* tile = stage + r * Tile<TYPE>::BYTES;
    uint32_t a[2][4];
    load_fragments<TYPE>(tile, at, block, a);
    if constexpr (TYPE == Weight::BF16) {
      SW_UNROLL
      for (int n = 0; n < TOKEN_TILES; ++n) {
        SW_UNROLL
        for (int m = 0; m < 2; ++m)
          mma_bf16_16x8x16(sums[r][n], a[m], {x[n][2 * m], x[n][2 * m + 1]});
      }
    } else {
      const Scales scales = load_scales<TYPE>(tile, at, block);
      SW_UNROLL
      for (int n = 0; n < TOKEN_TILES; ++n) {
        float partial[4] = {};
        SW_UNROLL
        for (int m = 0; m < 2; ++m) mma_bf16_16x8x16(partial, a[m], {x[n][2 * m], x[n][2 * m + 1]});
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

// Where this lane's 16-byte pieces of a block's row tiles begin, at column tile 0. Half of the
// tiles are of each matrix where there are two.
struct Source {
  const uint8_t* first;
  const uint8_t* second;  // of two matrices
  const uint8_t* scales;  // of the row tile whose scales this lane copies; null: of none
  size_t row_tile_bytes;
  int valid_tiles;  // of each matrix: row tiles past the end are not read, their weights are zero
};

template <Weight TYPE, Projection KIND, int ROW_TILES>
struct Copies {
  using T = Tile<TYPE>;
  static constexpr int OUT_TILES = has_two_matrices(KIND) ? ROW_TILES / 2 : ROW_TILES;
  static constexpr int SCALE_LANES = (T::BYTES - T::PIECES * PIECE_BYTES) / 16;  // of a row tile

  SW_DEVICE static Source source(const GemmArgs& args, int lane, int first_tile, int column_tiles) {
    Source out;
    out.row_tile_bytes = static_cast<size_t>(column_tiles) * T::BYTES;
    out.first = args.weights + first_tile * out.row_tile_bytes;
    out.second = has_two_matrices(KIND) ? args.up + first_tile * out.row_tile_bytes : nullptr;
    out.valid_tiles = (args.rows + TILE_ROWS - 1) / TILE_ROWS - first_tile;
    out.scales = nullptr;
    if constexpr (SCALE_LANES > 0) {
      const int r = lane / SCALE_LANES;
      if (r < ROW_TILES)
        out.scales = (r < OUT_TILES ? out.first : out.second) + r % OUT_TILES * out.row_tile_bytes +
                     T::PIECES * PIECE_BYTES + lane % SCALE_LANES * 16;
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
        copy_async_16(stage + r * T::BYTES + T::PIECES * PIECE_BYTES + lane % SCALE_LANES * 16,
                      source.scales + column, r % OUT_TILES < source.valid_tiles);
    }
  }
};

}  // namespace servewright::cuda
