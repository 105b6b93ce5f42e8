// Integer dot products of a block for a whole tile of tokens: 16 tokens times 16 rows times 32
// columns are one instruction of AMX. Exact, as those of dots.h are, so a token has the same bits
// by either.
//
//   multiply_tile: dots[token][row] = sum_c w[row][c] q[token][c]     q: int8 [TILE][32]
//
// The instruction takes its weights from memory, as signed bytes [8][row][4 columns]: a row group
// is unpacked once for all tiles of a call. It stands in assembly, for GCC 12's own words for tiles
// do not say that they read memory.
#pragma once
#include "dots.h"

#if defined(SW_AMX) || defined(SW_AVX2X16)
#define SW_TILES 1
#else
#define SW_TILES 0
#endif

namespace {

using servewright::TensorType;

// Up to here dots.h has it: tiles cost the same for one token as for 16.
constexpr int SMALL_TILE = 8;

#if SW_TILES

constexpr int TILE_BYTES = BLOCK * LANES;  // of a block's weights
constexpr int HELD_BLOCKS = 64;            // 32 KiB

// Blocks of a row group as signed bytes: all of them up to 2,048 columns, else some at a time.
struct Held {
  const uint8_t* first = nullptr;  // of them, packed
  alignas(64) int8_t bytes[HELD_BLOCKS * TILE_BYTES];
};

template <TensorType TYPE>
SW_INLINE void unpack_block(const uint8_t* w, int8_t* out) {
  constexpr bool has_min = TYPE == servewright::Q4_1, is_8 = TYPE == servewright::Q8_0;
  const uint8_t* weights = w + LANES * 2 * (has_min ? 2 : 1);
  const B offset = is_8 ? B{} + (uint8_t)128 : has_min ? B{} : B{} + (uint8_t)8;
  for (int i = 0; i < (is_8 ? 8 : 4); ++i) {
    const B v = load<B>(weights + i * LANES * 4);
    store(out + i * LANES * 4, is_8 ? v - offset : (v & 15) - offset);
    if (!is_8) store(out + (4 + i) * LANES * 4, ((B)((U)v >> 4) & 15) - offset);
  }
}

// Makes `held` hold `count` blocks from w on, each of `bytes` bytes.
template <TensorType TYPE>
SW_INLINE void hold(const uint8_t* w, int count, int bytes, Held* held) {
  if (held->first == w) return;
  held->first = w;
  for (int b = 0; b < count; ++b) unpack_block<TYPE>(w + b * bytes, held->bytes + b * TILE_BYTES);
}

#if defined(SW_AMX)

// The tile registers of this thread, from construction to destruction.
class TileUnit {
 public:
  explicit TileUnit(bool is_wanted)
      : is_wanted_(is_wanted) {
    if (!is_wanted) return;
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {LANES * 4, BLOCK, LANES * 4};
      uint8_t rows[16] = {TILE, TILE, BLOCK / 4};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileUnit() {
    if (is_wanted_) asm volatile("tilerelease");
  }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

 private:
  bool is_wanted_;
};

SW_INLINE void multiply_tile(const uint8_t* q, const int8_t* w, int32_t* dots) {
  asm volatile(
      "tilezero %%tmm0\n\t"
      "tileloadd (%0,%3,1), %%tmm1\n\t"
      "tileloadd (%1,%4,1), %%tmm2\n\t"
      "tdpbssd %%tmm2, %%tmm1, %%tmm0\n\t"
      "tilestored %%tmm0, (%2,%4,1)" ::"r"(q),
      "r"(w), "r"(dots), "r"((size_t)BLOCK), "r"((size_t)LANES * 4)
      : "memory");
}

#else

struct TileUnit {
  explicit TileUnit(bool) {}
};

SW_INLINE void multiply_tile(const uint8_t* q, const int8_t* w, int32_t* dots) {
  for (int m = 0; m < TILE; ++m)
    for (int row = 0; row < LANES; ++row) {
      int32_t sum = 0;
      for (int c = 0; c < BLOCK; ++c)
        sum += w[(c / 4 * LANES + row) * 4 + c % 4] * (int8_t)q[m * BLOCK + c];
      dots[m * LANES + row] = sum;
    }
}

#endif
#else

struct Held {};
struct TileUnit {
  explicit TileUnit(bool) {}
};

#endif

}  // namespace
