#include "weights.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace servewright::cuda {
namespace {

// A thread starts in 50 to 100 us, in which another packs some 200 KB.
constexpr size_t LEAST_SHARE = 1 << 20;

constexpr int HALF_ROWS = TILE_ROWS / 2;

constexpr int quant_bytes(Weight type) {
  return type == Weight::Q8_0 ? BLOCK_COLS : BLOCK_COLS / 2;
}

template <Weight TYPE>
struct Source {
  static constexpr int SCALE_BYTES = 2 * Tile<TYPE>::SCALES;
  static constexpr int BLOCK_BYTES =
      TYPE == Weight::BF16 ? 2 * BLOCK_COLS : SCALE_BYTES + quant_bytes(TYPE);
};

template <class F>
auto with_type(Weight type, const F& f) {
  switch (type) {
    case Weight::Q8_0:
      return f(std::integral_constant<Weight, Weight::Q8_0>());
    case Weight::Q4_0:
      return f(std::integral_constant<Weight, Weight::Q4_0>());
    case Weight::Q4_1:
      return f(std::integral_constant<Weight, Weight::Q4_1>());
    default:
      return f(std::integral_constant<Weight, Weight::BF16>());
  }
}

size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

template <class T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void store(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// Columns 0, 2, 1, 3 of each word.
uint64_t swap_middle(uint64_t w) {
  return (w & 0xFF0000FFFF0000FF) | (w & 0x0000FF000000FF00) << 8 | (w >> 8 & 0x0000FF000000FF00);
}

// The low nibbles of 8 bytes, in the order 0, 2, 4, 6, 1, 3, 5, 7.
uint32_t gather_nibbles(uint64_t w) {
  w &= 0x0F0F0F0F0F0F0F0F;
  w |= w >> 12;  // bytes 0, 1, 4, 5 now hold 0 2, 1 3, 4 6, 5 7
  const auto low = static_cast<uint32_t>(w), high = static_cast<uint32_t>(w >> 32);
  return (low & 0xFF) | (high & 0xFF) << 8 | (low & 0xFF00) << 8 | (high & 0xFF00) << 16;
}

// 32 columns of the rows g and g + 8 of a tile, `a` and `b`; fewer, `cols`, at the end of BF16's.
template <Weight TYPE>
void pack_block(const uint8_t* a, const uint8_t* b, int g, int block, int cols, uint8_t* tile) {
  using T = Tile<TYPE>;
  if constexpr (TYPE == Weight::BF16) {
    uint8_t ends[2][2 * BLOCK_COLS] = {};
    if (cols < BLOCK_COLS) {
      std::memcpy(ends[0], a, 2 * cols);
      std::memcpy(ends[1], b, 2 * cols);
      a = ends[0];
      b = ends[1];
    }
    for (int t = 0; t < 4; ++t) {
      uint8_t* lane = tile + 16 * (4 * g + t);
      for (int pair = 0; pair < 4; ++pair) {
        uint8_t* to = lane + pair / 2 * PIECE_BYTES + pair % 2 * 8;
        store(to, load<uint32_t>(a + 16 * t + 4 * pair));
        store(to + 4, load<uint32_t>(b + 16 * t + 4 * pair));
      }
    }
    return;
  }
  constexpr int SCALE_BYTES = Source<TYPE>::SCALE_BYTES;
  uint8_t* scales = tile + T::PIECES * PIECE_BYTES + (g * T::BLOCKS + block) * 2 * SCALE_BYTES;
  std::memcpy(scales, a, SCALE_BYTES);
  std::memcpy(scales + SCALE_BYTES, b, SCALE_BYTES);
  a += SCALE_BYTES;
  b += SCALE_BYTES;
  if constexpr (TYPE == Weight::Q8_0) {
    uint8_t* lanes = tile + block * PIECE_BYTES + 64 * g;
    for (int t = 0; t < 4; ++t) {
      store(lanes + 16 * t, swap_middle(load<uint64_t>(a + 8 * t)));
      store(lanes + 16 * t + 8, swap_middle(load<uint64_t>(b + 8 * t)));
    }
  } else {
    uint8_t* lanes = tile + block * (PIECE_BYTES / 2) + 32 * g;
    for (int t = 0; t < 4; ++t) {
      const int from = t % 2 * 8, shift = t / 2 * 4;
      store(lanes + 8 * t, gather_nibbles(load<uint64_t>(a + from) >> shift));
      store(lanes + 8 * t + 4, gather_nibbles(load<uint64_t>(b + from) >> shift));
    }
  }
}

// Row tiles [begin, end).
template <Weight TYPE>
void pack_tiles(int begin, int end, int rows, int cols, const uint8_t* source,
                uint8_t* destination) {
  using T = Tile<TYPE>;
  constexpr size_t BLOCK_BYTES = Source<TYPE>::BLOCK_BYTES;
  const size_t row_bytes = source_row_bytes(TYPE, cols);
  const int column_tiles = static_cast<int>(divide_up(cols, T::COLS));
  std::vector<uint8_t> zeros;  // the rows beyond the last
  if (rows < end * TILE_ROWS) zeros.resize(row_bytes);
  for (int row_tile = begin; row_tile < end; ++row_tile) {
    const uint8_t* row[TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; ++i) {
      const int r = row_tile * TILE_ROWS + i;
      row[i] = r < rows ? source + r * row_bytes : zeros.data();
    }
    uint8_t* tile = destination + static_cast<size_t>(row_tile) * column_tiles * T::BYTES;
    for (int column_tile = 0; column_tile < column_tiles; ++column_tile, tile += T::BYTES) {
      const int first = column_tile * T::COLS;
      if (first + T::COLS > cols) std::memset(tile, 0, T::BYTES);
      for (int block = 0; block < T::BLOCKS; ++block) {
        const int left = std::min(cols - first - block * BLOCK_COLS, BLOCK_COLS);
        if (left <= 0) break;
        const size_t at = (static_cast<size_t>(column_tile) * T::BLOCKS + block) * BLOCK_BYTES;
        for (int g = 0; g < HALF_ROWS; ++g)
          pack_block<TYPE>(row[g] + at, row[g + HALF_ROWS] + at, g, block, left, tile);
      }
    }
  }
}

// Runs work(begin, end) over [0, count) on this thread and others.
template <class Work>
void share(int count, int threads, const Work& work) {
  std::vector<std::thread> others;
  int begin = 0;
  for (int i = 0; i + 1 < threads; ++i) {
    const auto end = static_cast<int>(static_cast<int64_t>(count) * (i + 1) / threads);
    try {
      others.emplace_back(work, begin, end);
    } catch (const std::system_error&) {
      break;  // no more threads are given: what is left is this one's
    }
    begin = end;
  }
  work(begin, count);
  for (std::thread& other : others) other.join();
}

}  // namespace

size_t source_row_bytes(Weight type, int cols) {
  return with_type(type, [cols](auto t) {
    constexpr Weight TYPE = decltype(t)::value;
    if (TYPE == Weight::BF16) return static_cast<size_t>(cols) * 2;
    return static_cast<size_t>(cols / BLOCK_COLS) * Source<TYPE>::BLOCK_BYTES;
  });
}

size_t packed_bytes(Weight type, int rows, int cols) {
  return with_type(type, [=](auto t) {
    using T = Tile<decltype(t)::value>;
    return divide_up(rows, TILE_ROWS) * divide_up(cols, T::COLS) * T::BYTES;
  });
}

void pack_weights(Weight type, int rows, int cols, const uint8_t* source, uint8_t* destination,
                  int threads) {
  const auto tiles = static_cast<int>(divide_up(rows, TILE_ROWS));
  const size_t shares = packed_bytes(type, rows, cols) / LEAST_SHARE;
  threads = static_cast<int>(std::clamp<size_t>(threads, 1, std::max<size_t>(shares, 1)));
  share(tiles, std::min(threads, std::max(tiles, 1)), [=](int begin, int end) {
    with_type(type, [=](auto t) {
      pack_tiles<decltype(t)::value>(begin, end, rows, cols, source, destination);
    });
  });
}

}  // namespace servewright::cuda
