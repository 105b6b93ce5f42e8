// Weights as the projections read them: GGUF rows repacked so that a warp streams one contiguous
// range in 16-byte pieces, lane after lane.
//
// A matrix is [row tile][column tile][TILE bytes]. A row tile has 16 rows; a column tile has 64
// columns (BF16: 32), that is one or two 32-blocks. Both are padded with zeros. The bytes are
// GGUF's, so 16, 8.5, 4.5 or 5 bits a weight, and the padding.
//
// Lane 4 g + t holds of every 32-block the columns 8 t .. 8 t + 7 of the rows g and g + 8: as bf16
// activations these are one 16-byte vector. They go to mma.m16n8k16 in pairs: pair p is columns
// 8 t + 2 p and + 1, step m of the block takes the pairs 2 m and 2 m + 1.
//
//   BF16  [step m][lane] 4 words: pair 2 m of row g, of row g + 8, pair 2 m + 1 of both.
//   Q8_0  [block][lane] 4 words: row g columns 0-3 and 4-7, row g + 8 the same. In a word the bytes
//         are columns 0, 2, 1, 3, so that a pair is 16 bits apart.
//   Q4    [block][lane] 2 words: row g, row g + 8. In a word the nibbles are columns 0, 2, 4, 6, 1,
//         3, 5, 7.
//   Scales follow the pieces: [g][block][row g, row g + 8] f16 d, and for Q4_1 d, m.
//
// Matrices whose rows are multiples of 16 concatenate: Q, K and V of one type, packed one behind
// the other, are one matrix.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../common/step_ops.h"

namespace servewright::cuda {

constexpr int BLOCK_COLS = 32;  // weights that share a scale
constexpr int TILE_ROWS = 16;   // rows of an mma
constexpr int PIECE_BYTES = 16 * 32;

template <Weight TYPE>
struct Tile {
  static constexpr int BLOCKS = TYPE == Weight::BF16 ? 1 : 2;
  static constexpr int COLS = BLOCKS * BLOCK_COLS;
  static constexpr int PIECES = TYPE == Weight::BF16 || TYPE == Weight::Q8_0 ? 2 : 1;
  static constexpr int SCALES = TYPE == Weight::BF16 ? 0 : TYPE == Weight::Q4_1 ? 2 : 1;
  static constexpr int BYTES = PIECES * PIECE_BYTES + TILE_ROWS * BLOCKS * 2 * SCALES;
};

size_t source_row_bytes(Weight type, int cols);        // of a GGUF row
size_t packed_bytes(Weight type, int rows, int cols);  // of a packed matrix

// Packs `rows` contiguous GGUF rows into packed_bytes(type, rows, cols) bytes of host memory, on at
// most so many threads.
void pack_weights(Weight type, int rows, int cols, const uint8_t* source, uint8_t* destination,
                  int threads = 1);

}  // namespace servewright::cuda
