// bfloat16 as plain data: the upper half of a float32. Arithmetic is the device vocabulary's.
#pragma once
#include <stdint.h>

namespace servewright {

struct bfloat16 {
  uint16_t bits;
};

}  // namespace servewright
