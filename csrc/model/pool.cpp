#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <mutex>
#include <new>
#include <thread>

#include <immintrin.h>

namespace servewright {
namespace {

void futex_wait(std::atomic<int>* at, int expected) {
  syscall(SYS_futex, reinterpret_cast<int*>(at), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void futex_wake_all(std::atomic<int>* at) {
  syscall(SYS_futex, reinterpret_cast<int*>(at), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

class Pool {
 public:
  // Never destroyed: workers may outlive static destructors.
  static Pool& instance() {
    static Pool* pool = [] {
      pthread_atfork(nullptr, nullptr, [] { new (storage()) Pool(); });
      return new (storage()) Pool();
    }();
    return *pool;
  }

  void run(int threads, const std::function<void(int)>& program) {
    std::lock_guard<std::mutex> lock(mutex_);
    start_workers(threads - 1);
    program_ = &program;
    wanted_ = threads - 1;
    // Even: closed, odd: open. Workers enter while it is open.
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) futex_wake_all(&epoch_);
    try {
      program(0);
    } catch (...) {
      close();
      throw;
    }
    close();
  }

 private:
  static void* storage() {
    alignas(Pool) static unsigned char bytes[sizeof(Pool)];
    return bytes;
  }

  void close() {
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    for (int spins = 0; inside_.load(std::memory_order_seq_cst) != 0; ++spins) {
      if (spins < SPINS_IN_PHASE)
        _mm_pause();
      else
        std::this_thread::yield();
    }
  }

  void start_workers(int count) {
    while (workers_ < count) {
      // Signals are Python's main thread's business.
      sigset_t all, before;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
      const int index = workers_;
      try {
        std::thread([this, index] { work(index); }).detach();
      } catch (...) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        throw;
      }
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      ++workers_;
    }
  }

  void work(int index) {
    pthread_setname_np(pthread_self(), "servewright");
    int seen = 0;
    for (;;) {
      int epoch = epoch_.load(std::memory_order_seq_cst);
      for (int spins = 0; epoch == seen || epoch % 2 == 0; ++spins) {
        if (spins < SPINS_BETWEEN_STEPS) {
          _mm_pause();
        } else {
          sleepers_.fetch_add(1, std::memory_order_seq_cst);
          futex_wait(&epoch_, epoch);
          sleepers_.fetch_sub(1, std::memory_order_seq_cst);
          spins = 0;
        }
        epoch = epoch_.load(std::memory_order_seq_cst);
      }
      seen = epoch;
      inside_.fetch_add(1, std::memory_order_seq_cst);
      // Only after telling that we are inside may we look whether it is still open.
      if (epoch_.load(std::memory_order_seq_cst) == epoch && index < wanted_)
        (*program_)(index + 1);
      inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  std::mutex mutex_;
  int workers_ = 0;
  int wanted_ = 0;
  const std::function<void(int)>* program_ = nullptr;
  alignas(64) std::atomic<int> epoch_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int> inside_{0};
};

}  // namespace

Team::Team(int threads)
    : threads_(threads) {}

void Team::reset(int phases) {
  if (threads_ == 1) return;
  const int lines = phases * (threads_ + 1);
  if (phases > capacity_) {
    lines_.reset(new Line[lines]);
    capacity_ = phases;
  }
  for (int i = 0; i < lines; ++i) lines_[i].value.store(0, std::memory_order_relaxed);
}

void Team::finish(Line& total, int done, int chunks) {
  if (done > 0 && total.value.fetch_add(done, std::memory_order_seq_cst) + done == chunks) {
    if (total.sleepers.load(std::memory_order_seq_cst) > 0) futex_wake_all(&total.value);
    return;
  }
  for (int spins = 0; spins < SPINS_IN_PHASE; ++spins) {
    if (total.value.load(std::memory_order_acquire) == chunks) return;
    _mm_pause();
  }
  total.sleepers.fetch_add(1, std::memory_order_seq_cst);
  for (;;) {
    const int now = total.value.load(std::memory_order_seq_cst);
    if (now == chunks) break;
    futex_wait(&total.value, now);
  }
  total.sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

void run_on_pool(int threads, const std::function<void(int)>& program) {
  if (threads <= 1) {
    program(0);
    return;
  }
  Pool::instance().run(threads, program);
}

}  // namespace servewright
