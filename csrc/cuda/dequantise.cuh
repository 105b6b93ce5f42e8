// Packed weights as dense bf16, for matrix products that read [rows, cols] row by row (cuBLAS).
//
//   out[row, col] = bf16(d * q + m)
//
// Work     a warp takes four column tiles, one behind the other in memory, all their pieces in
//          flight at once. A lane's 8 columns of rows g and g + 8 (weights.h) are one 16-byte store
//          each. Four-bit pieces hold 16 columns of both rows in 16 bytes: lanes 2 i and 2 i + 1
//          exchange halves, so that together they store whole sectors.
// Numbers  BF16 exact. Q8_0 and Q4_0: d * q is exact in float32, so |error| <= 2^-8 |w|, the
//          rounding to bf16. Q4_1: the sum is rounded before: |error| <= (2^-8 + 2^-23) |w|.
// Bytes    packed_bytes read, 2 rows cols written, each once.
#pragma once
#include "gemm_weights.cuh"

namespace servewright::cuda {

namespace dense {

using Words = Vector<uint32_t, 4>;

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int TILES = 4;  // of a warp: 64 to 128 bytes a lane in flight

template <Weight TYPE>
constexpr bool IS_Q4 = TYPE == Weight::Q4_0 || TYPE == Weight::Q4_1;

// What a lane loads of a column tile: its pieces, and the scales of the blocks that are in them.
template <Weight TYPE>
struct Loaded {
  using T = Tile<TYPE>;
  static constexpr int BLOCKS = IS_Q4<TYPE> ? 1 : T::BLOCKS;  // that this lane has a part of
  static constexpr int SCALES = 2 * BLOCKS * T::SCALES;
  Words pieces[T::PIECES];
  Vector<uint16_t, SCALES ? SCALES : 1> scales;  // [block][row g, row g + 8] d, or d and m
};

// Lane 2 i of four bits has the low halves of lanes 2 i and 2 i + 1 in weights.h, and so on.
template <Weight TYPE>
SW_DEVICE int row_of(int lane) {
  return IS_Q4<TYPE> ? lane % 16 / 2 : lane / 4;
}

template <Weight TYPE>
SW_DEVICE void load(const uint8_t* tile, int lane, Loaded<TYPE>& to) {
  using T = Tile<TYPE>;
  SW_UNROLL
  for (int i = 0; i < T::PIECES; ++i) to.pieces[i] = load_16(tile + i * PIECE_BYTES + 16 * lane);
  if constexpr (T::SCALES > 0) {
    const int first_block = IS_Q4<TYPE> ? lane / 16 : 0;
    to.scales = load_vector<decltype(to.scales)>(tile + T::PIECES * PIECE_BYTES +
                                                 (row_of<TYPE>(lane) * T::BLOCKS + first_block) *
                                                     4 * T::SCALES);
  }
}

// bf16(d q + m) of a pair of bf16 integers.
SW_DEVICE uint32_t scaled(uint32_t q, float d, float m) {
  return pack_bfloat16(fma(d, bit_cast<float>(q << 16), m),
                       fma(d, bit_cast<float>(q & 0xffff0000u), m));
}

// Eight columns of one row: `half` 0 is row g, 1 is row g + 8. `part`: the 32-block (BF16, Q8_0),
// or which 8 of the lane's 16 columns.
template <Weight TYPE>
SW_DEVICE Words unpacked(const Loaded<TYPE>& from, int half, int part) {
  Words out;
  if constexpr (TYPE == Weight::BF16) {
    SW_UNROLL
    for (int pair = 0; pair < 4; ++pair) out[pair] = from.pieces[pair / 2][pair % 2 * 2 + half];
  } else {
    constexpr int COUNT = Tile<TYPE>::SCALES;
    const int at = (TYPE == Weight::Q8_0 ? 2 * part + half : half) * COUNT;
    const float d = half_to_float(from.scales[at]);
    const float m = COUNT == 2 ? half_to_float(from.scales[at + COUNT - 1]) : 0.0f;
    SW_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t q;
      if constexpr (TYPE == Weight::Q8_0)
        q = byte_pair(from.pieces[part][2 * half + pair / 2] >> (8 * (pair % 2)));
      else
        q = sub_bfloat16x2(nibbles_to_bfloat16(from.pieces[0][2 * part + half], 4 * pair),
                           TYPE == Weight::Q4_0 ? BFLOAT16_136 : BFLOAT16_128);
      out[pair] = scaled(q, d, m);
    }
  }
  return out;
}

// After it a lane has columns 8 (lane % 2) + {0 .. 7} of the first and of the second 16 columns of
// its 32-block, rows g and g + 8 of each.
SW_DEVICE void exchange(Words& piece, bool odd) {
  SW_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint32_t got = shuffle_xor(odd ? piece[half] : piece[2 + half], 1);
    if (odd)
      piece[half] = got;
    else
      piece[2 + half] = got;
  }
}

template <Weight TYPE>
SW_KERNEL(THREADS, 4)
void unpack_tiles(PackedMatrix w, bfloat16* out, int column_tiles, int tiles) {
  using T = Tile<TYPE>;
  const int lane = static_cast<int>(thread_index() % 32);
  const int warp = static_cast<int>(block_index().x * WARPS + thread_index() / 32);
  const int first = warp * TILES;
  Loaded<TYPE> loaded[TILES];
  SW_UNROLL
  for (int i = 0; i < TILES; ++i) {
    if (first + i < tiles)
      load<TYPE>(w.data + static_cast<size_t>(first + i) * T::BYTES, lane, loaded[i]);
  }
  SW_UNROLL
  for (int i = 0; i < TILES; ++i) {
    if (first + i >= tiles) break;
    if constexpr (IS_Q4<TYPE>) exchange(loaded[i].pieces[0], lane % 2);
    const int row = (first + i) / column_tiles * TILE_ROWS + row_of<TYPE>(lane);
    const int tile_column = (first + i) % column_tiles * T::COLS;
    constexpr int PARTS = IS_Q4<TYPE> ? 2 : T::BLOCKS;
    SW_UNROLL
    for (int part = 0; part < PARTS; ++part) {
      const int column =
          tile_column + (IS_Q4<TYPE> ? lane / 16 * BLOCK_COLS + part * 16 + lane % 2 * 8
                                     : part * BLOCK_COLS + lane % 4 * 8);
      SW_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (row + 8 * half < w.rows && column < w.cols)
          store_vector(out + static_cast<size_t>(row + 8 * half) * w.cols + column,
                       unpacked<TYPE>(loaded[i], half, part));
      }
    }
  }
}

}  // namespace dense

}  // namespace servewright::cuda
