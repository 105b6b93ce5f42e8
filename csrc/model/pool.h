// One pool of threads for all runners of the process, and the phases that a step is made of.
//
// A step is a program that every thread runs from top to bottom. Where work is shared, the program
// calls `Team::phase`: threads claim chunks from a counter until none is left, then wait until all
// claimed chunks are done. A thread that comes late (woken late, or its core taken) finds finished
// phases and passes them by; nobody waits for it unless it holds a chunk. Waiting spins for a
// bounded time, then sleeps on a futex, so that a stolen core is given back to who needs it.
//
// Workers live as long as the process, sleep between steps, and are started anew in a forked child.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace servewright {

// About 0.1 ms on current CPUs: longer than any wait inside a decode step of an idle machine,
// shorter than a scheduler's time slice by far.
constexpr int SPINS_IN_PHASE = 4000;
// Engines come back within 0.2 ms of a step; a futex wake costs 50 us.
constexpr int SPINS_BETWEEN_STEPS = 8000;

class Team {
 public:
  explicit Team(int threads);
  // Prepares for a program of at most `phases` phases.
  void reset(int phases);
  int threads() const { return threads_; }

  // Runs work(begin, end) over chunks of [0, units); returns when all of them are done. Every
  // thread calls it with its own `*phase`, which counts the program's phases.
  template <class Work>
  void phase(int* phase, int units, int chunk, const Work& work) {
    if (units <= 0) return;
    if (chunk < 1) chunk = 1;
    const int chunks = (units + chunk - 1) / chunk;
    if (threads_ == 1) {
      work(0, units);
      return;
    }
    Counter& counter = counters_[(*phase)++];
    for (;;) {
      const int c = counter.claimed.fetch_add(1, std::memory_order_relaxed);
      if (c >= chunks) break;
      work(c * chunk, c * chunk + chunk < units ? c * chunk + chunk : units);
      finish_chunk(counter, chunks);
    }
    if (counter.done.load(std::memory_order_acquire) != chunks) wait(counter, chunks);
  }

 private:
  // Claims and ends are apart: a waiting thread then spins on a line that changes less often.
  struct Counter {
    alignas(64) std::atomic<int> claimed{0};
    alignas(64) std::atomic<int> done{0};
    std::atomic<int> sleepers{0};
  };
  void finish_chunk(Counter& counter, int chunks);
  void wait(Counter& counter, int chunks);

  int threads_;
  int capacity_ = 0;
  std::unique_ptr<Counter[]> counters_;
};

// Runs program(thread) on `threads` threads, the caller being thread 0; returns when every thread
// that began has ended. One program at a time in the process: callers queue.
void run_on_pool(int threads, const std::function<void(int)>& program);

}  // namespace servewright
