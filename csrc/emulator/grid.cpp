#include "grid.h"

#include <string.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "block.h"
#include "fault.h"
#include "fiber.h"
#include "memory.h"

namespace servewright::emulator {

Options options;
const Here* here = nullptr;
Thread* current = nullptr;
long launch_count = 0;

namespace {

// Passes in which every thread that can run only spins.
constexpr long SPIN_LIMIT = 10000;
constexpr unsigned THREADS_LIMIT = 1024;   // of a block
constexpr unsigned GRID_YZ_LIMIT = 65535;  // blocks, in the directions y and z

const Launch* running = nullptr;
void (*running_body)(const void*) = nullptr;
const void* running_arguments = nullptr;
std::unique_ptr<SharedMemory> spare_memory;
Edge grid_end;  // all threads of a grid happen before what the host does next

// As the launch names it, without the brackets of one with commas.
std::string kernel_name() {
  const std::string name = running->kernel;
  return name.front() == '(' ? name.substr(1, name.size() - 2) : name;
}

void entry() {
  Thread* thread = current;
  thread->fiber.arrived();
  running_body(running_arguments);
  check_no_copy_is_left();
  thread->done = true;
  --thread->block->left;
  release(&grid_end);
  thread->fiber.leave(true);
  __builtin_unreachable();
}

std::unique_ptr<Block> start_block(Place place) {
  auto block = std::make_unique<Block>();
  block->place = place;
  block->left = running->threads;
  block->meeting.members = running->threads;
  block->warps = std::vector<Warp>(running->threads / WARP);
  for (Warp& warp : block->warps) warp.meeting.members = WARP;
  if (spare_memory)
    spare_memory->reset();
  else
    spare_memory = std::make_unique<SharedMemory>(running->shared_bytes);
  block->memory = std::move(spare_memory);
  for (unsigned i = 0; i < running->threads; ++i) {
    Thread& thread = block->threads.emplace_back();
    thread.here = {i, running->threads, place, running->grid};
    thread.block = block.get();
    thread.fiber.start(entry, KEEPS_MEMORY ? "block " + text(place) + " thread " + std::to_string(i)
                                           : std::string());
  }
  return block;
}

std::string state(const Thread& thread) {
  if (thread.done) return "have ended";
  if (!thread.waits && !thread.spinning) return "can run";
  return std::string(thread.spinning ? "spin in " : "wait at ") + thread.word + " (" +
         text(thread.line) + ")";
}

// "0, 32-63": ascending numbers.
std::string ranges(const std::vector<unsigned>& numbers) {
  std::string answer;
  for (size_t i = 0, j; i < numbers.size(); i = j) {
    for (j = i + 1; j < numbers.size() && numbers[j] == numbers[j - 1] + 1;) ++j;
    answer += (i ? ", " : "") + std::to_string(numbers[i]);
    if (j > i + 1) answer += "-" + std::to_string(numbers[j - 1]);
  }
  return answer;
}

[[noreturn]] void stuck(const std::string& what, const std::vector<Block*>& blocks) {
  std::string answer = what + " in kernel " + kernel_name();
  for (const Block* block : blocks) {
    if (!block->left) continue;
    std::map<std::string, std::vector<unsigned>> states;
    for (const Thread& thread : block->threads) states[state(thread)].push_back(thread.here.thread);
    answer += "\n  block " + text(block->place) + ":";
    for (const auto& [name, threads] : states)
      answer += "\n    threads " + ranges(threads) + " " + name;
  }
  running = nullptr;
  fault("%s", answer.c_str());
}

void resume(Thread& thread) {
  thread.spinning = false;
  current = &thread;
  here = &thread.here;
  thread.fiber.resume();
  current = nullptr;
  here = nullptr;
}

// Resumes the blocks' threads, pass after pass, until all have ended.
void run(const std::vector<Block*>& blocks, std::mt19937& random) {
  std::vector<Thread*> order;
  for (Block* block : blocks)
    for (Thread& thread : block->threads) order.push_back(&thread);
  if (options.order == Order::DOWN) std::reverse(order.begin(), order.end());
  long spun = 0;
  for (bool left = true; left;) {
    if (options.order == Order::RANDOM) std::shuffle(order.begin(), order.end(), random);
    bool ran = false, moved = false;
    left = false;
    for (Thread* thread : order) {
      if (thread->can_run()) {
        resume(*thread);
        ran = true;
        moved |= !thread->spinning;
      }
      left |= !thread->done;
    }
    spun = moved ? 0 : spun + 1;
    if (left && !ran) stuck("deadlock", blocks);
    if (left && spun > SPIN_LIMIT)
      stuck(running->resident ? "livelock, threads spin for what nobody does,"
                              : "livelock, threads spin and blocks of this launch run one after "
                                "the other,",
            blocks);
  }
  for (const Block* block : blocks)
    if (const std::string damage = block->memory->damage(); !damage.empty())
      fault("block %s: %s", text(block->place).c_str(), damage.c_str());
}

void check(const Launch& launch, size_t blocks) {
  if (launch.threads == 0 || launch.threads % WARP || launch.threads > THREADS_LIMIT)
    fault("%u threads a block; want a multiple of %u, at most %u", launch.threads, WARP,
          THREADS_LIMIT);
  if (!blocks || launch.grid.y > GRID_YZ_LIMIT || launch.grid.z > GRID_YZ_LIMIT)
    fault("a grid of %s blocks; want 1 or more, and at most %u in y and z",
          text(launch.grid).c_str(), GRID_YZ_LIMIT);
  if (KEEPS_MEMORY && blocks * launch.threads > RACING_THREADS)
    fault("%zu threads in a grid; ThreadSanitizer is given at most %zu (1024 with g++ 12)",
          blocks * launch.threads, RACING_THREADS);
}

void check_arrays() {
  for (const Array* array : arrays())
    if (const std::string damage = array->damage(); !damage.empty()) fault("%s", damage.c_str());
}

}  // namespace

std::string text(Place p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}

std::string text(Line line) {
  const char* slash = strrchr(line.file, '/');
  return std::string(slash ? slash + 1 : line.file) + ":" + std::to_string(line.line);
}

std::string position() {
  if (!running) return "";
  std::string answer = "kernel " + kernel_name();
  if (here) answer += ", block " + text(here->block) + ", thread " + std::to_string(here->thread);
  return answer;
}

int launch(const Launch& launch, void (*body)(const void*), const void* arguments) {
  ++launch_count;
  running = &launch;
  running_body = body;
  running_arguments = arguments;
  const Place grid = launch.grid;
  const size_t count = size_t{grid.x} * grid.y * grid.z;
  check(launch, count);
  for (Array* array : arrays()) array->remember();
  std::mt19937 random(options.seed);
  std::vector<Place> order;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) order.push_back({x, y, z});
  if (options.order == Order::DOWN) std::reverse(order.begin(), order.end());
  if (options.order == Order::RANDOM) std::shuffle(order.begin(), order.end(), random);

  std::vector<std::unique_ptr<Block>> started;
  std::vector<Block*> together;
  for (const Place place : order) {
    started.push_back(start_block(place));
    together.push_back(started.back().get());
    if (launch.resident && together.size() < count) continue;
    run(together, random);
    together.clear();
    if (KEEPS_MEMORY) continue;
    spare_memory = std::move(started.back()->memory);
    started.clear();
  }
  acquire(&grid_end);
  started.clear();
  spare_memory.reset();
  check_arrays();
  running = nullptr;
  return 0;
}

}  // namespace servewright::emulator
