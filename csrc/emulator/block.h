// What the emulator keeps of a running grid: its blocks, their warps and threads.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "grid.h"
#include "memory.h"

namespace servewright::emulator {

constexpr unsigned WARP = 32;

// A word that ThreadSanitizer sees as one thing that publishes and fetches, alone on its line.
struct alignas(64) Edge {
  char address[64];
};

// Where threads meet: a barrier, or a word of the warp.
struct Meeting {
  uint64_t phase = 0;
  unsigned arrived = 0, members = 0, first = 0;
  const char* word = "";
  Line line = {"", 0};
  // By parity of the phase: a thread past one barrier must not publish into those still leaving it.
  Edge edges[2];
};

struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};
struct Warp {
  Meeting meeting;
  // By parity of the phase: a lane may give its next value while others still fetch.
  uint64_t values[2][WARP];
  Fragments fragments[2][WARP];
};

// Async copies between two commits.
struct Group {
  std::vector<Copy> copies;
  std::unique_ptr<Edge> landed;
};

struct Block;

struct Thread {
  Fiber fiber;
  Here here = {};
  Block* block = nullptr;
  bool done = false, spinning = false;
  bool waited = false;  // for the launch before
  const Meeting* waits = nullptr;
  uint64_t phase = 0;  // of `waits`, which it waits to see end
  const char* word = "";
  Line line = {"", 0};
  std::vector<Copy> open;
  std::vector<Group> groups;  // the oldest first
  Edge issued;

  bool can_run() const { return !done && (!waits || waits->phase != phase); }
};

struct Block {
  Place place = {};
  std::deque<Thread> threads;
  std::vector<Warp> warps;
  Meeting meeting;
  std::unique_ptr<SharedMemory> memory;
  unsigned left = 0;
};

extern Thread* current;  // nullptr while the scheduler or the host runs

// The end of the launch before, as the running block's threads wait for it. Without members it has
// been already.
extern Meeting previous_end;
void acquire_previous_launch();

bool is_beside();  // the running launch, the one before it

std::string text(Place place);
std::string text(Line line);
// "kernel K, block (x, y, z), thread t"; empty outside of launches.
std::string position();
// Faults unless all copies of the current thread were waited for.
void check_no_copy_is_left();

}  // namespace servewright::emulator
