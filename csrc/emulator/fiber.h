// A fiber: a stack and a place in its code. Switches cost about 20 ns and no system call.
//
// The sanitizers are told of every switch, so that AddressSanitizer knows which stack is in use and
// ThreadSanitizer counts fibers as threads that nothing orders (no_sync): what orders them is said
// by the vocabulary alone. SW_ASAN and SW_TSAN say which sanitizer the kernels are compiled with;
// the emulator's own files are always compiled without, so their memory is invisible to it.
#pragma once
#include <stddef.h>
#include <string>

namespace servewright::emulator {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Prepares to call `entry` on a stack of its own at the first resume. `entry` never returns: it
  // ends in leave(true).
  // `name` is for ThreadSanitizer's reports.
  void start(void (*entry)(), std::string name);
  // First thing on its own stack.
  void arrived();
  // From the scheduler: runs the fiber until it leaves.
  void resume();
  // From the fiber: back to the scheduler, for the last time when `ending`.
  void leave(bool ending);
  // Between these two, what the fiber does counts as done by another thread, "NAME copies": by the
  // hardware that moves its async copies. `caller` is where the kernel asked for it.
  void start_copying(const void* caller);
  void end_copying();
  bool overflowed_to(const void* address) const;  // the guard page below its stack

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  // ThreadSanitizer's, of the fiber and of its async copies
  void* context_ = nullptr;
  void* copies_ = nullptr;
  std::string name_;
};

// ThreadSanitizer would call memory that one thread frees and another gets a race between them: so
// nothing is used again before the grid ends.
#if defined(SW_TSAN)
constexpr bool KEEPS_MEMORY = true;
#else
constexpr bool KEEPS_MEMORY = false;
#endif
// The threads of a grid among which ThreadSanitizer still sees every race. Of g++ 12 it was tried;
// the runtime of clang 19, with 255 slots for threads, lost races from 256 on.
#if __GNUC__ == 12 && !defined(__clang__)
constexpr size_t RACING_THREADS = 1024;
#else
constexpr size_t RACING_THREADS = 192;
#endif

// Happens-before edges for ThreadSanitizer; nothing without it.
void release(void* where);
void acquire(void* where);

// Fibers begin with what the device has seen.
void device_acquire(void* where);
// What the host does between these two is the emulator's own: it races with nobody.
void start_own_work();
void end_own_work();

}  // namespace servewright::emulator
