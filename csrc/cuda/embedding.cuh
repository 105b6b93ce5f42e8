// Rows of a packed matrix as float32: a decode step's input.
//
//   x[token, k] = W[token_ids[token], k]
//
// Shapes   token_ids [tokens] int32; x [tokens, cols] float32. An id that is no row gives zeros, so
//          that an empty slot may hold anything.
// Work     a block a token; a thread takes the columns 8 t .. 8 t + 7 of every 32-block of a column
//          tile, which one lane's pieces hold (weights.h).
// Next     x times the first norm's weight in bf16, and squares of 16 columns (step_ops.h).
// Numbers  exact, but Q4_1: d * q + m is rounded once. The bits of the CPU's unpack_row.
// Bytes    4 cols written. Read: half of each 32-byte sector is another row's; BF16 4 bytes a
//          column, Q8_0 2.1, Q4 1.1. Some KB in all: the launch's time is its latency.
#pragma once
#include "../common/device.cuh"
#include "../common/step_ops.h"
#include "squares.cuh"
#include "weights.h"

namespace servewright::cuda {

namespace embedding {

using namespace servewright::device;

constexpr int THREADS = 128;  // 4096 columns are 256 pieces: two rounds
constexpr int LANES = 4;      // that share a row
using Piece = Vector<uint32_t, 4>;
using Columns = float[8];

SW_DEVICE float low_half(uint32_t pair) { return bit_cast<float>(pair << 16); }
SW_DEVICE float high_half(uint32_t pair) { return bit_cast<float>(pair & 0xffff0000u); }

// Where lane t of row `row` (of 16) finds its piece.
SW_DEVICE Piece load_piece(const uint8_t* tile, int piece, int row, int t) {
  return load_16(tile + piece * PIECE_BYTES + 16 * (row % 8 * LANES + t));
}

// d, and m or 0, of a 32-block.
template <Weight TYPE>
SW_DEVICE void load_scale(const uint8_t* tile, int row, int block, float* d, float* m) {
  constexpr int COUNT = Tile<TYPE>::SCALES;
  const auto* scales = reinterpret_cast<const uint16_t*>(tile + Tile<TYPE>::PIECES * PIECE_BYTES);
  const int at = ((row % 8 * Tile<TYPE>::BLOCKS + block) * 2 + row / 8) * COUNT;
  *d = half_to_float(scales[at]);
  *m = COUNT == 2 ? half_to_float(scales[at + COUNT - 1]) : 0.0f;
}

// Columns 8 t .. 8 t + 7 of a 32-block of the tile.
template <Weight TYPE>
SW_DEVICE void unpack(const uint8_t* tile, int row, int block, int t, Columns& to) {
  const int half = row / 8;
  if constexpr (TYPE == Weight::BF16) {
    SW_UNROLL
    for (int step = 0; step < 2; ++step) {
      const Piece words = load_piece(tile, step, row, t);
      SW_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        const uint32_t word = half ? words[2 * pair + 1] : words[2 * pair];
        to[4 * step + 2 * pair] = low_half(word);
        to[4 * step + 2 * pair + 1] = high_half(word);
      }
    }
    return;
  }
  if constexpr (TYPE != Weight::BF16) {
    float d, m;
    load_scale<TYPE>(tile, row, block, &d, &m);
    uint32_t words[2];
    if constexpr (TYPE == Weight::Q8_0) {
      const Piece piece = load_piece(tile, block, row, t);
      words[0] = half ? piece[2] : piece[0];
      words[1] = half ? piece[3] : piece[1];
    } else {
      const auto pair = load_vector<Vector<uint32_t, 2>>(tile + block * (PIECE_BYTES / 2) +
                                                         8 * (row % 8 * LANES + t));
      words[0] = half ? pair[1] : pair[0];
    }
    SW_UNROLL
    for (int k = 0; k < 8; ++k) {
      int q;
      if constexpr (TYPE == Weight::Q8_0) {
        q = static_cast<int8_t>(words[k / 4] >> (8 * (k % 4 / 2 + k % 2 * 2)));
      } else {
        q = static_cast<int>(words[0] >> (4 * (k / 2 + k % 2 * 4)) & 15u);
        if constexpr (TYPE == Weight::Q4_0) q -= 8;
      }
      to[k] = fma(d, static_cast<float>(q), m);
    }
  }
}

// What the next norm wants of 8 columns. By whole warps: neighbours share 16 columns' squares.
SW_DEVICE void leave_next(const NextNorm& next, int cols, int token, int column, bool is_inside,
                          const Columns& values) {
  if (!next.weight) return;
  float squares = 0;
  SW_UNROLL
  for (int k = 0; k < 8; ++k) squares = fma(values[k], values[k], squares);
  squares += shuffle_xor(squares, 1);
  if (!is_inside) return;
  Piece scaled;
  SW_UNROLL
  for (int half = 0; half < 2; ++half) {
    const Piece weight = load_16(next.weight + column + 4 * half);
    SW_UNROLL
    for (int i = 0; i < 2; ++i)
      scaled[2 * half + i] =
          pack_bfloat16(values[4 * half + 2 * i] * bit_cast<float>(weight[2 * i]),
                        values[4 * half + 2 * i + 1] * bit_cast<float>(weight[2 * i + 1]));
  }
  store_vector(next.scaled + static_cast<size_t>(token) * cols + column, scaled);
  if (column % SQUARES_COLUMNS == 0)
    next.squares[squares_at(token, column / SQUARES_COLUMNS, cols)] = squares;
}

template <Weight TYPE>
SW_KERNEL(THREADS, 8)
void gather_rows(PackedMatrix w, const int32_t* token_ids, float* x, NextNorm next) {
  using T = Tile<TYPE>;
  wait_previous_launch();
  let_next_launch();
  const int token = static_cast<int>(block_index().x);
  const int id = token_ids[token];
  const bool is_row = id >= 0 && id < w.rows;
  const int column_tiles = (w.cols + T::COLS - 1) / T::COLS;
  const int row = is_row ? id % TILE_ROWS : 0;
  const uint8_t* const tiles =
      w.data + static_cast<size_t>(is_row ? id / TILE_ROWS : 0) * column_tiles * T::BYTES;
  const size_t first = static_cast<size_t>(token) * w.cols;
  const int pieces = column_tiles * LANES;
  for (int round = 0; round < pieces; round += THREADS) {
    const int at = round + static_cast<int>(thread_index()), t = at % LANES;
    const uint8_t* const tile = tiles + static_cast<size_t>(at / LANES) * T::BYTES;
    SW_UNROLL
    for (int block = 0; block < T::BLOCKS; ++block) {
      const int column = (at / LANES * T::BLOCKS + block) * BLOCK_COLS + 8 * t;
      const bool is_inside = at < pieces && column < w.cols;
      Columns values = {};
      if (is_inside && is_row) unpack<TYPE>(tile, row, block, t, values);
      if (is_inside) {
        SW_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float* const v = values + 4 * i;
          store_vector(x + first + column + 4 * i, Vector<float, 4>{{v[0], v[1], v[2], v[3]}});
        }
      }
      leave_next(next, w.cols, token, column, is_inside, values);
    }
  }
}

}  // namespace embedding

}  // namespace servewright::cuda
