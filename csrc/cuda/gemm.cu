// Launchers of the projections: the tiling for a shape, and the translation unit for its type.
#include <algorithm>

#include "gemm.cuh"

namespace servewright::cuda {
namespace {

// Of an H100 SXM: 132 multiprocessors at 1.755 GHz that issue 4 instructions a cycle, 3.35 TB/s
// from DRAM and about 5.5 from L2. Elsewhere only the balance of the choice suffers.
constexpr int MULTIPROCESSORS = 132;
constexpr double L2_PER_DRAM = 5.5 / 3.35;
constexpr double INSTRUCTIONS_PER_BYTE = 4 * 132 * 1.755e9 / 3.35e12;

struct WeightCost {
  double bytes;         // of a row tile, 64 columns
  double instructions;  // to unpack them, of a warp; counted in the sm_90 code
};

WeightCost weight_cost(Weight type) {
  switch (type) {
    case Weight::Q8_0:
      return {Tile<Weight::Q8_0>::BYTES, 50};
    case Weight::Q4_0:
      return {Tile<Weight::Q4_0>::BYTES, 40};
    case Weight::Q4_1:
      return {Tile<Weight::Q4_1>::BYTES, 44};
    default:
      return {2 * Tile<Weight::BF16>::BYTES, 16};
  }
}

// Time for 64 columns, in bytes from DRAM. What binds it of the weights from DRAM, all bytes from
// L2 and the busiest multiprocessor's instructions, and a tenth of all, for overlap is not perfect.
// DRAM is not counted by rounds of blocks: a third of the blocks of a round keep it busy.
double cost(Weight type, Projection kind, int tiles, int tokens, Tiling tiling) {
  const bool norm = has_norm(kind);
  const int r = tiling.row_tiles, t = tiling.token_tiles;
  const int chunks = (tokens + MMA_TOKENS * t - 1) / (MMA_TOKENS * t);
  const int blocks = (tiles + r - 1) / r * chunks;
  const int rounds = (blocks + MULTIPROCESSORS - 1) / MULTIPROCESSORS;
  const WeightCost weight = weight_cost(type);
  const double activations = 64.0 * (norm ? 4 * tokens / chunks + 4 : 2 * tokens / chunks);
  const double from_dram = tiles * weight.bytes;
  const double from_l2 = (from_dram * chunks + blocks * activations) / L2_PER_DRAM;
  const double instructions = 70 + r * (weight.instructions + 16 * t) + t * (norm ? 90 : 10);
  const double issue = rounds * MULTIPROCESSORS * instructions / INSTRUCTIONS_PER_BYTE;
  return std::max({from_dram, from_l2, issue}) + 0.1 * (from_dram + from_l2 + issue);
}

Tiling choose(Weight type, Projection kind, int rows, int tokens) {
  const int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS * (has_two_matrices(kind) ? 2 : 1);
  Tiling best;
  best.token_tiles = tokens <= MMA_TOKENS ? 1 : tokens <= 2 * MMA_TOKENS ? 2 : 4;
  double least = 0;
  for (int row_tiles = 4; row_tiles > 0; row_tiles /= 2) {
    const Tiling next = {row_tiles, best.token_tiles};
    if (!is_compiled(kind, next)) continue;
    const double time = cost(type, kind, tiles, tokens, next);
    if (best.row_tiles && time >= least) continue;
    best = next;
    least = time;
  }
  return best;
}

int launch(Projection kind, Weight type, GemmArgs args, Tiling tiling, Stream stream, Start start) {
  if (args.tokens <= 0) return 0;
  const bool whole = args.cols % (type == Weight::BF16 ? 8 : BLOCK_COLS) == 0;
  if (args.rows <= 0 || args.cols <= 0 || !whole) return INVALID_VALUE;
  if (tiling.row_tiles == 0) tiling = choose(type, kind, args.rows, args.tokens);
  if (!is_compiled(kind, tiling)) return INVALID_VALUE;
  args.inverse_cols = 1.0f / static_cast<float>(args.cols);
  switch (type) {
    case Weight::BF16:
      return launch_type<Weight::BF16>(kind, args, tiling, stream, start);
    case Weight::Q8_0:
      return launch_type<Weight::Q8_0>(kind, args, tiling, stream, start);
    case Weight::Q4_0:
      return launch_type<Weight::Q4_0>(kind, args, tiling, stream, start);
    case Weight::Q4_1:
      return launch_type<Weight::Q4_1>(kind, args, tiling, stream, start);
  }
  return INVALID_VALUE;
}

GemmArgs arguments(const PackedMatrix& w, int tokens) {
  GemmArgs args = {};
  args.weights = w.data;
  args.rows = w.rows;
  args.cols = w.cols;
  args.tokens = tokens;
  args.out_stride = w.rows;
  return args;
}

void read_normed(GemmArgs& args, const NormInput& in) {
  args.x = in.x;
  args.norm_weight = in.weight;
  args.eps = in.eps;
}

void read_scaled(GemmArgs& args, const ScaledInput& in) {
  args.in = in.scaled;
  args.squares = in.squares;
  args.eps = in.eps;
}

}  // namespace

int project_normed(const PackedMatrix& w, const NormInput& in, float* out, int out_stride,
                   int tokens, Stream stream, Tiling tiling, Start start) {
  GemmArgs args = arguments(w, tokens);
  read_normed(args, in);
  args.out = out;
  args.out_stride = out_stride;
  return launch(Projection::NORMED, w.type, args, tiling, stream, start);
}

int project_normed(const PackedMatrix& w, const ScaledInput& in, float* out, int out_stride,
                   int tokens, Stream stream, Tiling tiling, Start start) {
  GemmArgs args = arguments(w, tokens);
  read_scaled(args, in);
  args.out = out;
  args.out_stride = out_stride;
  return launch(Projection::SCALED, w.type, args, tiling, stream, start);
}

int project_residual(const PackedMatrix& w, const bfloat16* in, float* x, int tokens, Stream stream,
                     Tiling tiling, Start start, const NextNorm& next) {
  GemmArgs args = arguments(w, tokens);
  args.in = in;
  args.out = x;
  args.next = next;
  return launch(Projection::RESIDUAL, w.type, args, tiling, stream, start);
}

int gate_up(const PackedMatrix& gate, const PackedMatrix& up, const NormInput& in, bfloat16* out,
            int tokens, Stream stream, Tiling tiling, Start start) {
  if (gate.type != up.type || gate.rows != up.rows || gate.cols != up.cols) return INVALID_VALUE;
  GemmArgs args = arguments(gate, tokens);
  read_normed(args, in);
  args.up = up.data;
  args.out = out;
  return launch(Projection::GATE_UP, gate.type, args, tiling, stream, start);
}

int gate_up(const PackedMatrix& gate, const PackedMatrix& up, const ScaledInput& in, bfloat16* out,
            int tokens, Stream stream, Tiling tiling, Start start) {
  if (gate.type != up.type || gate.rows != up.rows || gate.cols != up.cols) return INVALID_VALUE;
  GemmArgs args = arguments(gate, tokens);
  read_scaled(args, in);
  args.up = up.data;
  args.out = out;
  return launch(Projection::SCALED_GATE_UP, gate.type, args, tiling, stream, start);
}

}  // namespace servewright::cuda
