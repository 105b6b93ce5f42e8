#include "fault.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block.h"
#include "memory.h"

#if defined(SW_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(SW_TSAN)
// Of the runtime, for debuggers: what a report is about, and a function it calls after each.
extern "C" int __tsan_get_report_data(void* report, const char** description, int* count,
                                      int* stacks, int* accesses, int* locations, int* mutexes,
                                      int* threads, int* unique_threads, void** sleep_trace,
                                      unsigned long trace_size);
extern "C" int __tsan_get_report_mop(void* report, unsigned long index, int* thread, void** address,
                                     int* size, int* is_write, int* is_atomic, void** trace,
                                     unsigned long trace_size);
extern "C" void __tsan_on_report(void* report);
#endif

namespace servewright::emulator {
namespace {

alignas(16) char signal_stack[64 << 10];

void say_where() {
#if defined(SW_ASAN)
  if (__asan_report_present())
    fprintf(stderr, "fault: AddressSanitizer reports %s\n",
            describe(__asan_get_report_address()).c_str());
#endif
  const std::string where = position();
  if (!where.empty()) fprintf(stderr, "  in %s\n", where.c_str());
  fflush(stderr);
}

[[maybe_unused]] void on_bad_address(int signal, siginfo_t* info, void* /*context*/) {
  if (signal == SIGSEGV && info->si_code == SI_KERNEL)
    fault("misaligned vector access, or an address no memory can have");
  if (current && current->fiber.overflowed_to(info->si_addr)) fault("the stack overflowed");
  fault("no access to %s", describe(info->si_addr).c_str());
}

// UndefinedBehaviorSanitizer has said what it found.
void on_abort(int) {
  say_where();
  _exit(FAULT_STATUS);
}

void on_alarm(int) { fault("the time limit is over"); }

}  // namespace

void fault(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("fault: ", stderr);
  vfprintf(stderr, format, arguments);
  fputs("\n", stderr);
  va_end(arguments);
  say_where();
  _exit(FAULT_STATUS);
}

void catch_faults(unsigned time_limit_s) {
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
#if defined(SW_ASAN)
  // It reports a bad address itself, with its line; this adds where that was.
  __sanitizer_set_death_callback(say_where);
#else
  action.sa_sigaction = on_bad_address;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
#endif
  action.sa_flags = SA_ONSTACK;
  action.sa_handler = on_alarm;
  sigaction(SIGALRM, &action, nullptr);
  action.sa_handler = on_abort;
  sigaction(SIGABRT, &action, nullptr);
  alarm(time_limit_s);
}

}  // namespace servewright::emulator

#if defined(SW_TSAN)
// Seen from libtsan, which has an empty one of its own, also where -fvisibility hides all else.
extern "C" __attribute__((visibility("default"))) void __tsan_on_report(void* report) {
  using namespace servewright::emulator;
  const char* description;
  int count, stacks, accesses, locations, mutexes, threads, unique;
  int thread, size, is_write, is_atomic;
  void *address, *trace[1];
  __tsan_get_report_data(report, &description, &count, &stacks, &accesses, &locations, &mutexes,
                         &threads, &unique, trace, 1);
  if (accesses) {
    __tsan_get_report_mop(report, 0, &thread, &address, &size, &is_write, &is_atomic, trace, 1);
    fprintf(stderr, "fault: a race on %s\n", describe(address).c_str());
  }
  say_where();
}
#endif
