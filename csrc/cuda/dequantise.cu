// Launcher of dequantise.cuh.
#include "dequantise.cuh"

namespace servewright::cuda {
namespace {

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue

template <Weight TYPE>
int launch_unpack(const PackedMatrix& w, bfloat16* out, Stream stream) {
  constexpr int COLS = Tile<TYPE>::COLS, OF_A_BLOCK = dense::WARPS * dense::TILES;
  const int column_tiles = (w.cols + COLS - 1) / COLS;
  const int tiles = (w.rows + TILE_ROWS - 1) / TILE_ROWS * column_tiles;
  return SW_LAUNCH(dense::unpack_tiles<TYPE>, (tiles + OF_A_BLOCK - 1) / OF_A_BLOCK, dense::THREADS,
                   0, stream, w, out, column_tiles, tiles);
}

}  // namespace

int dequantise(const PackedMatrix& w, bfloat16* out, Stream stream) {
  if (w.rows < 0 || w.cols < 1 || w.cols % (w.type == Weight::BF16 ? 8 : BLOCK_COLS))
    return INVALID_VALUE;
  if (w.rows == 0) return 0;
  switch (w.type) {
    case Weight::BF16:
      return launch_unpack<Weight::BF16>(w, out, stream);
    case Weight::Q8_0:
      return launch_unpack<Weight::Q8_0>(w, out, stream);
    case Weight::Q4_0:
      return launch_unpack<Weight::Q4_0>(w, out, stream);
    case Weight::Q4_1:
      return launch_unpack<Weight::Q4_1>(w, out, stream);
  }
  return INVALID_VALUE;
}

}  // namespace servewright::cuda
