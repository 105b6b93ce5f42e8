#include <algorithm>
#include <deque>
#include <mutex>

#include "../emulator/memory.h"
#include "runtime.h"

namespace servewright::cuda_module {
namespace {

std::mutex emulator_mutex;

// One array for regions that overlap, as views of one buffer may.
Regions merged(Regions regions) {
  std::sort(regions.begin(), regions.end(),
            [](const Region& a, const Region& b) { return a.data < b.data; });
  Regions all;
  for (Region& region : regions) {
    if (region.bytes == 0) continue;
    if (all.empty() || region.data >= all.back().data + all.back().bytes) {
      all.push_back(std::move(region));
      continue;
    }
    Region& last = all.back();
    last.bytes = std::max(last.data + last.bytes, region.data + region.bytes) - last.data;
    last.is_written |= region.is_written;
    if (last.name != region.name) last.name += " and " + region.name;
  }
  return all;
}

}  // namespace

std::string device_problem(int) { return ""; }

cuda::Processors processors(int) { return {2, 227 << 10}; }

DeviceError::DeviceError(const std::string& caller, int status)
    : std::runtime_error(caller + ": the launcher returned error " + std::to_string(status)) {}

Current::Current(int, const Regions& regions) {
  emulator_mutex.lock();
  const auto arrays = std::make_shared<std::deque<emulator::Array>>();
  for (const Region& region : merged(regions))
    arrays->emplace_back(region.name, region.data, region.bytes,
                         region.is_written ? emulator::Use::WRITE : emulator::Use::READ);
  known_ = arrays;
}

Current::~Current() {
  known_.reset();
  emulator_mutex.unlock();
}

}  // namespace servewright::cuda_module
