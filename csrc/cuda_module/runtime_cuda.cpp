#include <cuda_runtime_api.h>

#include "runtime.h"

namespace servewright::cuda_module {
namespace {

constexpr int LEAST_CAPABILITY = 80;  // cp.async, bf16 mma

// 13000 is 13.0
std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string words(int status) {
  const auto error = static_cast<cudaError_t>(status);
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&value, which, device);
  if (status != cudaSuccess) throw DeviceError("device " + std::to_string(device), status);
  return value;
}

}  // namespace

std::string device_problem(int device) {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);  // leaves 0 where there is none
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (driver == 0)
    return "No NVIDIA driver is found (libcuda.so.1); install one that supports CUDA " +
           version(runtime) + ", and start a container with the NVIDIA container runtime.";
  if (status == cudaErrorInsufficientDriver)
    return "The NVIDIA driver supports CUDA " + version(driver) + ", but the kernels are built " +
           "for CUDA " + version(runtime) + "; install a newer driver.";
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    return "The NVIDIA driver sees no CUDA device; give this machine or container a GPU, and look "
           "at CUDA_VISIBLE_DEVICES.";
  if (status != cudaSuccess) return "The NVIDIA driver fails (" + words(status) + ").";
  if (device < 0 || device >= count)
    return "CUDA device " + std::to_string(device) + " is asked for, but the driver sees " +
           std::to_string(count) + ", numbered from 0.";
  try {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    if (10 * major + minor < LEAST_CAPABILITY)
      return "CUDA device " + std::to_string(device) + " has compute capability " +
             std::to_string(major) + "." + std::to_string(minor) +
             ", but the kernels need 8.0 (Ampere) or later.";
  } catch (const DeviceError& error) {
    return "The NVIDIA driver fails (" + std::string(error.what()) + ").";
  }
  return "";
}

cuda::Processors processors(int device) {
  return {attribute(cudaDevAttrMultiProcessorCount, device),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device))};
}

DeviceError::DeviceError(const std::string& caller, int status)
    : std::runtime_error(caller + ": " + words(status)) {
  cudaGetLastError();  // else the next launch would report it again
}

Current::Current(int device, const Regions&) {
  int now = 0;
  status_ = cudaGetDevice(&now);
  if (status_ || now == device) return;
  status_ = cudaSetDevice(device);
  if (!status_) before_ = now;
}

Current::~Current() {
  if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace servewright::cuda_module
