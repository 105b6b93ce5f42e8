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
Meeting previous_end;
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
Edge before_launch;  // from the host to the device
// All threads of a launch happen before the launch behind it, and before what the host does once it
// has synchronised. By parity, so that a launch beside another can follow the one before that.
Edge launch_ends[2];
// For ThreadSanitizer, which may call a new thread by the number of one that is gone: threads of
// one launch are kept until the next has ended. Never destroyed: what it holds needs the others.
auto& ended = *new std::vector<std::unique_ptr<Block>>;
auto& ended_arguments = *new std::shared_ptr<const void>;

Edge& end_of(long number) { return launch_ends[number & 1]; }

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
  if (running->beside && !thread->waited)
    fault("the thread ended without wait_previous_launch, in a launch beside another");
  thread->done = true;
  --thread->block->left;
  release(&end_of(launch_count));
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

// A block of a launch beside another begins in memory as it was before that one ...
void hide_previous_launch() {
  for (Array* array : arrays()) array->hide();
  previous_end.members = 1;
}

// ... and finds its results when all its threads wait for them.
void show_previous_launch(bool is_first) {
  for (Array* array : arrays())
    if (!array->show() || (is_first && !array->is_as_remembered()))
      fault("array %s was written before wait_previous_launch", array->name().c_str());
  previous_end.members = 0;
  ++previous_end.phase;
}

// Resumes the blocks' threads, pass after pass, until all have ended.
void run(const std::vector<Block*>& blocks, std::mt19937& random, bool is_first) {
  if (running->beside) hide_previous_launch();
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
    if (left && !ran && previous_end.members) {
      show_previous_launch(is_first);
      continue;
    }
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
  size_t threads = blocks * launch.threads;
  for (const auto& block : ended) threads += block->threads.size();
  if (KEEPS_MEMORY && threads > RACING_THREADS)
    fault("%zu threads side by side; ThreadSanitizer is given at most %zu (1024 with g++ 12)",
          threads, RACING_THREADS);
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

void synchronise() {
  for (Edge& end : launch_ends) acquire(&end);
}

bool is_beside() { return running->beside; }
void acquire_previous_launch() { acquire(&end_of(launch_count - 1)); }

int launch(const Launch& launch, void (*body)(const void*), std::shared_ptr<const void> arguments) {
  ++launch_count;
  start_own_work();
  acquire(&end_of(launch_count - 2));
  if (!launch.beside) {
    acquire(&end_of(launch_count - 1));
    ended.clear();
  }
  release(&before_launch);
  device_acquire(&before_launch);
  running = &launch;
  running_body = body;
  running_arguments = arguments.get();
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
  bool is_first = true;
  for (const Place place : order) {
    started.push_back(start_block(place));
    together.push_back(started.back().get());
    if (launch.resident && together.size() < count) continue;
    run(together, random, is_first);
    is_first = false;
    together.clear();
    if (KEEPS_MEMORY) continue;
    spare_memory = std::move(started.back()->memory);
    started.clear();
  }
  ended = std::move(started);
  ended_arguments = std::move(arguments);
  spare_memory.reset();
  check_arrays();
  for (Array* array : arrays()) array->note_changes();
  running = nullptr;
  end_own_work();
  return 0;
}

}  // namespace servewright::emulator
