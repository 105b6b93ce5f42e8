#include "weights.h"

#include <cstring>

namespace servewright::cuda {
namespace {

struct Shape {
  int blocks, bytes, pieces, scales;
};

template <Weight TYPE>
constexpr Shape shape_of() {
  return {Tile<TYPE>::BLOCKS, Tile<TYPE>::BYTES, Tile<TYPE>::PIECES, Tile<TYPE>::SCALES};
}

Shape shape(Weight type) {
  switch (type) {
    case Weight::Q8_0:
      return shape_of<Weight::Q8_0>();
    case Weight::Q4_0:
      return shape_of<Weight::Q4_0>();
    case Weight::Q4_1:
      return shape_of<Weight::Q4_1>();
    default:
      return shape_of<Weight::BF16>();
  }
}

int quant_bytes(Weight type) { return type == Weight::Q8_0 ? BLOCK_COLS : BLOCK_COLS / 2; }
size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

// Where in `piece` lane (row % 8, t) of the tile begins.
uint8_t* lane_of(uint8_t* piece, int row, int t, int lane_bytes = 16) {
  return piece + lane_bytes * (row % 8 * 4 + t);
}

void pack_bf16(int row, int cols, const uint8_t* source, uint8_t* tile) {
  for (int k = 0; k < cols; ++k) {
    const int pair = k % 8 / 2, word = row / 8 + pair % 2 * 2;
    uint8_t* lane = lane_of(tile + pair / 2 * PIECE_BYTES, row, k / 8);
    std::memcpy(lane + 4 * word + k % 2 * 2, source + 2 * k, 2);
  }
}

void pack_q8(int row, int block, const uint8_t* quants, uint8_t* tile) {
  for (int k = 0; k < BLOCK_COLS; ++k) {
    const int word = row / 8 * 2 + k % 8 / 4, byte = k % 4 / 2 + k % 2 * 2;
    lane_of(tile + block * PIECE_BYTES, row, k / 8)[4 * word + byte] = quants[k];
  }
}

void pack_q4(int row, int block, const uint8_t* quants, uint8_t* tile) {
  for (int k = 0; k < BLOCK_COLS; ++k) {
    const uint8_t q = k < 16 ? quants[k] & 15 : quants[k - 16] >> 4;
    const int nibble = k % 8 / 2 + k % 2 * 4;
    uint8_t* lane = lane_of(tile + block * PIECE_BYTES / 2, row, k / 8, 8);
    lane[row / 8 * 4 + nibble / 2] |= static_cast<uint8_t>(q << (nibble % 2 * 4));
  }
}

}  // namespace

size_t source_row_bytes(Weight type, int cols) {
  if (type == Weight::BF16) return size_t(cols) * 2;
  return size_t(cols / BLOCK_COLS) * (2 * shape(type).scales + quant_bytes(type));
}

size_t packed_bytes(Weight type, int rows, int cols) {
  const Shape tile = shape(type);
  return divide_up(rows, TILE_ROWS) * divide_up(cols, tile.blocks * BLOCK_COLS) * tile.bytes;
}

void pack_weights(Weight type, int rows, int cols, const uint8_t* source, uint8_t* destination) {
  const Shape shape_ = shape(type);
  const size_t column_tiles = divide_up(cols, shape_.blocks * BLOCK_COLS);
  const size_t row_bytes = source_row_bytes(type, cols);
  std::memset(destination, 0, packed_bytes(type, rows, cols));
  for (int r = 0; r < rows; ++r) {
    const uint8_t* from = source + r * row_bytes;
    uint8_t* row_tile = destination + r / TILE_ROWS * column_tiles * shape_.bytes;
    const int row = r % TILE_ROWS;
    for (int k = 0; k < cols; k += BLOCK_COLS) {
      const int block = k / BLOCK_COLS % shape_.blocks;
      uint8_t* tile = row_tile + size_t(k / BLOCK_COLS / shape_.blocks) * shape_.bytes;
      if (type == Weight::BF16) {
        pack_bf16(row, cols - k < BLOCK_COLS ? cols - k : BLOCK_COLS, from + 2 * k, tile);
        continue;
      }
      const int scale_bytes = 2 * shape_.scales;
      uint8_t* scales = tile + shape_.pieces * PIECE_BYTES;
      const int at = (row % 8 * shape_.blocks + block) * 2 + row / 8;
      std::memcpy(scales + at * scale_bytes, from, scale_bytes);
      from += scale_bytes;
      if (type == Weight::Q8_0) {
        pack_q8(row, block, from, tile);
      } else {
        pack_q4(row, block, from, tile);
      }
      from += quant_bytes(type);
    }
  }
}

}  // namespace servewright::cuda
