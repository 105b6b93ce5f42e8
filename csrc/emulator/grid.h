// A grid of CUDA blocks on the CPU: one fiber a thread, run in a chosen order until each waits.
//
// No two threads run in lockstep, so what a kernel assumes of a warp without saying so breaks here.
// This is what device_fibers.h is written over; kernels never see it.
//
// Order: threads (and blocks) are resumed ascending, descending or shuffled, pass after pass. A
// pass in which nobody can go on is a deadlock. Blocks run one after the other, or all together
// when the launch is resident.
//
// A launch beside the one before it (programmatic dependent launch): each block first runs until
// its threads wait for that launch, in memory as it was before it, so whoever reads its results too
// early gets old ones; ThreadSanitizer has not heard of its end by then. The device may do so with
// any block. Results themselves come afterwards.
//
// Stricter than the device, on purpose: every thread of the block takes part in each barrier, at
// the same source line; all 32 lanes in each word of the warp; async copies may not be left in
// flight.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>

namespace servewright::emulator {

enum class Order { UP, DOWN, RANDOM };
enum class Copies { LAZY, EAGER };  // bytes arrive at the wait that asks for them, or at once

struct Options {
  Order order = Order::UP;
  Copies copies = Copies::LAZY;
  unsigned seed = 1;
};
extern Options options;

struct Place {
  unsigned x, y, z;
};
// Where the running thread is.
struct Here {
  unsigned thread, threads;
  Place block, grid;
};
extern const Here* here;

struct Launch {
  const char* kernel;
  Place grid;
  unsigned threads;
  size_t shared_bytes;
  bool resident;
  bool beside;
};
int launch(const Launch& launch, void (*body)(const void*), std::shared_ptr<const void> arguments);
extern long launch_count;  // of this process
// Behind it the host may look at what launches wrote.
void synchronise();

struct Line {
  const char* file;
  int line;
};
void barrier(Line line);
void warp_barrier(Line line);
// The value that `lane` gave; all lanes give one.
uint64_t shuffle(uint64_t value, unsigned lane, Line line);
uint32_t ballot(bool value, Line line);
void mma_bf16_16x8x16(float* d, const uint32_t* a, const uint32_t* b, Line line);
void spin(Line line);
void wait_previous_launch(Line line);
void let_next_launch(Line line);

// Static shared memory: one address a block and key.
void* shared(const void* key, size_t bytes, const char* name);
void* dynamic_shared();

struct Copy {
  void* to;
  const void* from;  // nullptr: zeros
};
// Checks and notes a copy of 16 bytes; true when it lands at once, false when at its wait.
bool issue(const Copy& copy, Line line);
void commit();
// The oldest copy yet to land outside the newest `kept` groups; false when there is none.
bool due(int kept, Copy* copy);
// What the thread does between these two counts as the hardware's, which races with the thread
// until it waits. What the thread did before it issued the copy comes first.
void start_copying(bool issuing);
void end_copying();

// Faults unless the address is aligned and, where it is in or beside a global array or in shared
// memory, wholly inside.
void check_access(const void* address, size_t bytes, size_t alignment, const char* word, Line line);
// Faults when this launch wrote the 16 bytes, or writes them later.
void check_read_only(const void* address, const char* word, Line line);

}  // namespace servewright::emulator
