// How a launch begins, as plain data. The device vocabulary says what a kernel must do for BESIDE.
#pragma once

namespace servewright {

enum class Start : int {
  BEHIND,  // when all before it in the stream has ended
  BESIDE   // already while the launch before it ends
};

}  // namespace servewright
