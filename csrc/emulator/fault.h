// Faults: a kernel did what a device would not survive, or would punish with wrong numbers. Each
// ends the process with one text that names kernel, block and thread.
#pragma once
#include <string>

namespace servewright::emulator {

constexpr int FAULT_STATUS = 70;

// Prints "fault: TEXT" and where the current thread is, then ends the process.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Turns signals (bad address, time limit) and sanitizer reports into the same form.
void catch_faults(unsigned time_limit_s);

}  // namespace servewright::emulator
