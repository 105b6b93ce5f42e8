// What differs between the device and the emulator: where memory lies, whether the device is
// usable, whose words an error has. runtime_cuda.cpp and runtime_fibers.cpp.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/step.h"
#include "dlpack.h"

namespace servewright::cuda_module {

#if defined(SW_FIBERS)
constexpr bool EMULATED = true;
constexpr int DEVICE_TYPE = CPU;
#else
constexpr bool EMULATED = false;
constexpr int DEVICE_TYPE = CUDA;
#endif

// Why the kernels cannot run on this device, one sentence; empty if they can.
std::string device_problem(int device);

// Throws DeviceError.
cuda::Processors processors(int device);

// The device refused; `status` is what a launcher returned.
class DeviceError : public std::runtime_error {
 public:
  DeviceError(const std::string& caller, int status);
};

// Memory that a launch may touch.
struct Region {
  std::string name;
  char* data;
  size_t bytes;
  bool is_written;
};
using Regions = std::vector<Region>;

// While it lives the device is this thread's current one. In the emulator, which runs one launch at
// a time, the emulator is this thread's, and knows of the regions.
class Current {
 public:
  Current(int device, const Regions& regions);
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current();
  int status() const { return status_; }

 private:
  int before_ = -1;  // the device to go back to; -1: it is the same
  int status_ = 0;
  std::shared_ptr<void> known_;  // regions, to the emulator
};

// Launches without the GIL. Throws DeviceError.
template <class Launch>
void run(const char* caller, int device, const Regions& regions, const Launch& launch) {
  int status;
  {
    const pybind11::gil_scoped_release release;
    const Current current(device, regions);
    status = current.status() ? current.status() : launch();
  }
  if (status) throw DeviceError(caller, status);
}

}  // namespace servewright::cuda_module
