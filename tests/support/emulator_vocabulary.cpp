// The vocabulary's own tests.
// Sources: tests/support/vocabulary.cu
#include "emulator_driver.h"
#include "vocabulary.h"

using namespace servewright;

namespace {

using driver::Request;

int count_of(const Request& request, const char* name) {
  return static_cast<int>(request.shape(name)[0]);
}
vocabulary::Grid grid_of(const Request& request) {
  const auto part = [&](const char* name) { return static_cast<unsigned>(request.integer(name)); };
  return {part("grid_x"), part("grid_y"), part("grid_z")};
}
unsigned threads_of(const Request& request) {
  return static_cast<unsigned>(request.integer("threads"));
}

}  // namespace

SW_OP(places) {
  const auto grid = grid_of(request);
  const int64_t all = int64_t{grid.x} * grid.y * grid.z * threads_of(request);
  request.check(
      vocabulary::places(request.output<uint32_t>("out", {all, 8}), grid, threads_of(request)));
}

SW_OP(running_order) {
  const int blocks = static_cast<int>(request.integer("blocks"));
  const int threads = static_cast<int>(threads_of(request));
  request.check(vocabulary::running_order(request.inout<uint32_t>("counter"),
                                          request.output<uint32_t>("order", {blocks * threads}),
                                          blocks, threads));
}

SW_OP(block_sums) {
  const int blocks = count_of(request, "x");
  request.check(vocabulary::block_sums(request.input<float>("x"),
                                       request.output<float>("sums", {blocks}), blocks,
                                       static_cast<int>(request.shape("x")[1])));
}

SW_OP(warp_words) {
  request.check(vocabulary::warp_words(
      request.input<double>("x"),
      {request.output<double>("pairs", {32}), request.output<uint64_t>("rotated", {32}),
       request.output<uint32_t>("ballot", {32}), request.output<uint32_t>("any", {32})}));
}

SW_OP(copies) {
  request.check(vocabulary::copies(request.input<uint32_t>("x"),
                                   request.output<uint32_t>("out", {256}), count_of(request, "x")));
}

SW_OP(fresh_shared) {
  request.check(vocabulary::fresh_shared(request.output<float>("fixed", {64}),
                                         request.output<float>("dynamic", {64})));
}

SW_OP(totals) {
  const int blocks = count_of(request, "x") / 64;
  request.check(vocabulary::totals(
      request.input<uint32_t>("x"),
      {request.inout<int32_t>("integer"), request.inout<uint64_t>("wide"),
       request.inout<float>("real"), request.inout<uint32_t>("largest"),
       request.inout<uint64_t>("largest_wide"), request.output<float>("shared", {blocks})},
      blocks));
}

SW_OP(mma_tile) {
  request.check(vocabulary::mma_tile(request.input<bfloat16>("a"), request.input<bfloat16>("b"),
                                     request.input<float>("c"),
                                     request.output<float>("d", {16, 8})));
}

SW_OP(numbers) {
  const int count = count_of(request, "x");
  request.check(vocabulary::numbers(
      request.input<float>("x"),
      {request.output<bfloat16>("narrow", {count}), request.output<uint32_t>("packed", {count}),
       request.output<float>("exp2", {count}), request.output<float>("rsqrt", {count}),
       request.output<float>("fused", {count}), request.output<uint32_t>("difference", {count})},
      count));
}

SW_OP(words) {
  const int count = count_of(request, "x");
  request.check(vocabulary::words(
      request.input<uint32_t>("x"),
      {request.output<uint32_t>("nibbles", {count}), request.output<uint32_t>("masked", {count}),
       request.output<uint32_t>("lower", {count}), request.output<uint32_t>("upper", {count}),
       request.output<uint32_t>("ones", {count}), request.output<uint32_t>("zeros", {count}),
       request.output<uint32_t>("high", {count})},
      count));
}

SW_OP(halves) {
  const int count = count_of(request, "x");
  request.check(vocabulary::halves(request.input<uint16_t>("x"),
                                   request.output<float>("out", {count}), count));
}

SW_OP(read_at) {
  request.check(vocabulary::read_at(request.input<float>("x"), request.output<float>("out", {1}),
                                    static_cast<int>(request.integer("index"))));
}

SW_OP(look_beside) {
  const int count = count_of(request, "x");
  request.check(vocabulary::look_beside(request.inout<uint32_t>("x"),
                                        request.output<uint32_t>("early", {count}),
                                        request.output<uint32_t>("late", {count}), count,
                                        static_cast<Start>(request.integer("start"))));
}

SW_OP(spin_for_ever) {
  request.check(vocabulary::spin_for_ever(request.output<uint32_t>("out", {1})));
}

SW_OP(overflow_stack) {
  request.check(vocabulary::overflow_stack(request.output<uint32_t>("out", {32})));
}

SW_OP(with_shape) {
  request.check(vocabulary::with_shape(request.output<uint32_t>("out", {2}), grid_of(request),
                                       threads_of(request), request.integer("shared_bytes")));
}
