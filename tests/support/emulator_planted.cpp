// Planted bugs: each op takes the scalar "bug".
// Sources: tests/support/planted.cu
#include "emulator_driver.h"
#include "planted.h"

using namespace servewright;

namespace {

planted::Bug bug_of(const driver::Request& request) {
  return static_cast<planted::Bug>(request.integer("bug"));
}
int rows_of(const driver::Request& request, const char* name) {
  return static_cast<int>(request.shape(name)[0]);
}

}  // namespace

SW_OP(sum_rows) {
  const int rows = rows_of(request, "x");
  request.check(planted::sum_rows(request.input<float>("x"), request.output<float>("sums", {rows}),
                                  request.inout<uint32_t>("count"), rows, bug_of(request)));
}

SW_OP(sum_columns) {
  const int rows = rows_of(request, "x");
  request.check(planted::sum_columns(request.input<float>("x"),
                                     request.workspace<float>("partials", rows * 64),
                                     request.inout<uint32_t>("ticket"),
                                     request.output<float>("out", {64}), rows, bug_of(request)));
}

SW_OP(stream_rows) {
  request.check(planted::stream_rows(request.input<float>("x"), request.output<float>("out", {256}),
                                     rows_of(request, "x"), bug_of(request)));
}

SW_OP(two_phases) {
  const int count = rows_of(request, "x");
  request.check(
      planted::two_phases(request.input<float>("x"), request.workspace<float>("between", count),
                          request.inout<uint32_t>("counter"), request.output<float>("out", {count}),
                          count / 32, bug_of(request)));
}

SW_OP(square_beside) {
  const int count = rows_of(request, "x");
  request.check(planted::square_beside(request.input<float>("x"), request.input<float>("w"),
                                       request.workspace<float>("between", count),
                                       request.output<float>("out", {count}), count,
                                       bug_of(request)));
}

SW_OP(rotate_warp) {
  const int count = rows_of(request, "x");
  request.check(planted::rotate_warp(
      request.input<float>("x"), request.output<float>("out", {count}), count, bug_of(request)));
}

SW_OP(multiply) {
  request.check(planted::multiply(request.input<bfloat16>("a"), request.input<bfloat16>("b"),
                                  request.output<float>("d", {16, 8}), bug_of(request)));
}
