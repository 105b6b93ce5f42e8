// The vocabulary's own tests: one small kernel for each promise of device.cuh.
// Sources: tests/support/vocabulary.cu
#include "emulator_driver.h"
#include "vocabulary.h"

using namespace servewright;

SW_OP(block_sums) {
  const auto blocks = request.shape("x")[0];
  const auto threads = request.shape("x")[1];
  request.check(vocabulary::block_sums(request.input<float>("x"),
                                       request.output<float>("sums", {blocks}),
                                       static_cast<int>(blocks), static_cast<int>(threads)));
}

SW_OP(mma_tile) {
  request.check(vocabulary::mma_tile(request.input<bfloat16>("a"), request.input<bfloat16>("b"),
                                     request.output<float>("d", {16, 8})));
}
