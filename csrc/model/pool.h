// One pool of threads for all runners of the process, and the phases that a step is made of.
//
// A step is a program that every thread runs from top to bottom. Where work is shared, the program
// calls `Team::phase`: each thread claims chunks of its own share, then of the others', until none
// is left, and waits until all are done. A thread that comes late (woken late, or its core taken)
// finds finished phases and passes them by; nobody waits for it unless it holds a chunk. Waiting
// spins for a bounded time, then sleeps on a futex, so that a stolen core is given back to who
// needs it.
//
// Workers live as long as the process, sleep between steps, and are started anew in a forked child.
#pragma once
#include <atomic>
#include <cstddef>
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
  //
  // A thread's share is contiguous and its counter is on a line that others touch only to steal, so
  // that claiming costs a few ns; one shared counter cost 4 % of a decode step on two threads.
  template <class Work>
  void phase(int* phase, int thread, int units, int chunk, const Work& work) {
    if (units <= 0) return;
    if (threads_ == 1) {
      work(0, units);
      return;
    }
    if (chunk < 1) chunk = 1;
    const int chunks = (units + chunk - 1) / chunk;
    Line* lines = lines_.get() + static_cast<size_t>((*phase)++) * (threads_ + 1);
    int done = 0;
    for (int i = 0; i < threads_; ++i) {
      const int owner = thread + i < threads_ ? thread + i : thread + i - threads_;
      const int begin = share_begin(chunks, owner), count = share_begin(chunks, owner + 1) - begin;
      std::atomic<int>& claimed = lines[owner].value;
      while (claimed.load(std::memory_order_relaxed) < count) {
        const int c = claimed.fetch_add(1, std::memory_order_relaxed);
        if (c >= count) break;
        const int first = (begin + c) * chunk;
        work(first, first + chunk < units ? first + chunk : units);
        ++done;
      }
    }
    finish(lines[threads_], done, chunks);
  }

 private:
  struct Line {
    alignas(64) std::atomic<int> value{0};
    std::atomic<int> sleepers{0};
  };
  int share_begin(int chunks, int thread) const {
    return static_cast<int>(static_cast<long long>(chunks) * thread / threads_);
  }
  // Adds `done` chunks and waits until all `chunks` of the phase are done.
  void finish(Line& total, int done, int chunks);

  int threads_;
  int capacity_ = 0;
  std::unique_ptr<Line[]> lines_;  // [phases, threads + 1]: claimed of each share, done of all
};

// Runs program(thread) on `threads` threads, the caller being thread 0; returns when every thread
// that began has ended. One program at a time in the process: callers queue.
void run_on_pool(int threads, const std::function<void(int)>& program);

}  // namespace servewright
