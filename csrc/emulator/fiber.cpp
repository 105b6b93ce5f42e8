#include "fiber.h"

#include <stdint.h>
#include <sys/mman.h>

#include <utility>
#include <vector>

#include "fault.h"

#if defined(SW_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SW_TSAN)
#include <sanitizer/tsan_interface.h>
// What the compiler itself calls at the begin and end of a function.
extern "C" void __tsan_func_entry(void* call_pc);
extern "C" void __tsan_func_exit();
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

#if !defined(__x86_64__)
#error "the emulator's switch of fibers is written for x86-64 only: run these tests on such a CPU"
#endif

// Saves what a called function must keep, changes the stack, restores.
extern "C" void servewright_switch(void** from, void* to);
__asm__(
    ".text\n.globl servewright_switch\n.type servewright_switch,@function\n"
    "servewright_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size servewright_switch,.-servewright_switch\n");

namespace servewright::emulator {
namespace {

constexpr size_t PAGE = 4096;
constexpr size_t CACHE_LINE = 64;
#if defined(SW_ASAN) || defined(SW_TSAN)
constexpr size_t STACK = 256 << 10;  // red zones and reports need room
#else
constexpr size_t STACK = 64 << 10;
#endif

// The scheduler's side of a switch; one scheduler, one OS thread.
struct Scheduler {
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  void* context = nullptr;
} scheduler;

std::vector<char*> spare_stacks;

#if defined(SW_TSAN)
void* device() {
  static void* const context = __tsan_create_fiber(0);
  return context;
}
#endif

char* take_stack() {
  if (!spare_stacks.empty()) {
    char* stack = spare_stacks.back();
    spare_stacks.pop_back();
    return stack;
  }
  void* p = mmap(nullptr, PAGE + STACK, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fault("no memory for the stack of a thread");
  mprotect(p, PAGE, PROT_NONE);
  return static_cast<char*>(p) + PAGE;
}

void give_stack(char* stack) {
  if (KEEPS_MEMORY)
    munmap(stack - PAGE, PAGE + STACK);
  else
    spare_stacks.push_back(stack);
}

}  // namespace

Fiber::~Fiber() {
  if (stack_) give_stack(stack_);
#if defined(SW_TSAN)
  if (context_) __tsan_destroy_fiber(context_);
  if (copies_) __tsan_destroy_fiber(copies_);
#endif
}

void Fiber::start(void (*entry)(), std::string name) {
  name_ = std::move(name);  // before the fiber exists: what comes later would be a race with it
  stack_ = take_stack();
#if defined(SW_ASAN)
  __asan_unpoison_memory_region(stack_, STACK);
#endif
#if defined(SW_TSAN)
  scheduler.context = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(device(), __tsan_switch_to_fiber_no_sync);
  context_ = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(scheduler.context, __tsan_switch_to_fiber_no_sync);
  __tsan_set_fiber_name(context_, name_.c_str());
#endif
  // Not all at the same place of a page: they would share a few lines of the cache.
  static unsigned started = 0;
  const size_t apart = started++ % (PAGE / CACHE_LINE) * CACHE_LINE;
  void** top = reinterpret_cast<void**>(stack_ + STACK - apart);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  stack_pointer_ = top;
}

void Fiber::resume() {
#if defined(SW_ASAN)
  __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack_, STACK);
#endif
#if defined(SW_TSAN)
  __tsan_switch_to_fiber(context_, __tsan_switch_to_fiber_no_sync);
#endif
  servewright_switch(&scheduler.stack_pointer, stack_pointer_);
#if defined(SW_ASAN)
  __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave(bool ending) {
#if defined(SW_ASAN)
  __sanitizer_start_switch_fiber(ending ? nullptr : &fake_stack_, scheduler.bottom, scheduler.size);
#endif
#if defined(SW_TSAN)
  __tsan_switch_to_fiber(scheduler.context, __tsan_switch_to_fiber_no_sync);
#endif
  (void)ending;
  servewright_switch(&stack_pointer_, scheduler.stack_pointer);
#if defined(SW_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack_, &scheduler.bottom, &scheduler.size);
#endif
}

void Fiber::arrived() {
#if defined(SW_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
}

bool Fiber::overflowed_to(const void* address) const {
  const char* p = static_cast<const char*>(address);
  return stack_ && p >= stack_ - PAGE && p < stack_;
}

#if defined(SW_TSAN)
void Fiber::start_copying(const void* caller) {
  if (!copies_) {
    copies_ = __tsan_create_fiber(0);
    __tsan_set_fiber_name(copies_, (name_ + " copies").c_str());
  }
  __tsan_switch_to_fiber(copies_, __tsan_switch_to_fiber_no_sync);
  __tsan_func_entry(const_cast<void*>(caller));  // or a report would not know the kernel's line
}
void Fiber::end_copying() {
  __tsan_func_exit();
  __tsan_switch_to_fiber(context_, __tsan_switch_to_fiber_no_sync);
}

void release(void* where) { __tsan_release(where); }
void acquire(void* where) { __tsan_acquire(where); }
void device_acquire(void* where) {
  void* const host = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(device(), __tsan_switch_to_fiber_no_sync);
  __tsan_acquire(where);
  __tsan_switch_to_fiber(host, __tsan_switch_to_fiber_no_sync);
}
void start_own_work() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
void end_own_work() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
#else
void Fiber::start_copying(const void*) {}
void Fiber::end_copying() {}

void release(void*) {}
void acquire(void*) {}
void device_acquire(void*) {}
void start_own_work() {}
void end_own_work() {}
#endif

}  // namespace servewright::emulator
