#include "grid.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fault.h"
#include "fiber.h"
#include "memory.h"

namespace servewright::emulator {

Options options;
const Here* here = nullptr;

namespace {

constexpr unsigned WARP = 32;
// Passes in which every thread that can run only spins.
constexpr long SPIN_LIMIT = 10000;
// Two addresses far enough apart that ThreadSanitizer keeps them apart: a thread already past one
// barrier must not publish into those still leaving it.
struct alignas(64) Edge {
  char address[64];
};

// Where threads meet: a barrier, or a word of the warp.
struct Meeting {
  uint64_t phase = 0;
  unsigned arrived = 0, members = 0, first = 0;
  const char* word = "";
  Line line = {"", 0};
  Edge edges[2];
};

struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};
struct Warp {
  Meeting meeting;
  uint64_t values[2][WARP];
  Fragments fragments[2][WARP];
};

struct Block;

struct Thread {
  Fiber fiber;
  Here here = {};
  Block* block = nullptr;
  bool done = false, spinning = false;
  const Meeting* waits = nullptr;
  uint64_t phase = 0;
  const char* word = "";
  Line line = {"", 0};
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;

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

const Launch* running = nullptr;
void (*running_body)(const void*) = nullptr;
const void* running_arguments = nullptr;
Thread* current = nullptr;
char grid_end;  // ThreadSanitizer: all threads of a grid happen before what the host does next

std::string text(Place p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}
std::string text(Line line) {
  const std::string file = line.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(line.line);
}

void leave_until(const Meeting& meeting, uint64_t phase) {
  Thread* thread = current;
  thread->waits = &meeting;
  thread->phase = phase;
  while (meeting.phase == phase) thread->fiber.leave(false);
  thread->waits = nullptr;
}

// The phase this meeting had; returns when all members have come. `last` runs in the last to come.
template <class Last>
uint64_t meet(Meeting& meeting, const char* word, Line line, const Last& last) {
  Thread* thread = current;
  thread->word = word;
  thread->line = line;
  if (meeting.arrived == 0) {
    meeting.word = word;
    meeting.line = line;
    meeting.first = thread->here.thread;
  } else if (meeting.word != std::string(word) || meeting.line.line != line.line ||
             std::string(meeting.line.file) != line.file) {
    fault("threads that must meet are at different places: thread %u at %s (%s), thread %u at %s "
          "(%s)",
          meeting.first, meeting.word, text(meeting.line).c_str(), thread->here.thread, word,
          text(line).c_str());
  }
  const uint64_t phase = meeting.phase;
  if (++meeting.arrived == meeting.members) {
    last(phase);
    meeting.arrived = 0;
    ++meeting.phase;
  } else {
    leave_until(meeting, phase);
  }
  return phase;
}
constexpr auto nothing = [](uint64_t) {};

Warp& warp() { return current->block->warps[current->here.thread / WARP]; }
unsigned lane() { return current->here.thread % WARP; }

void entry() {
  Thread* thread = current;
  thread->fiber.arrived();
  running_body(running_arguments);
  size_t left = thread->open.size();
  for (const auto& group : thread->groups) left += group.size();
  if (left) fault("the thread ended with %zu async copies not waited for", left);
  thread->done = true;
  --thread->block->left;
  release(&grid_end);
  thread->fiber.leave(true);
  __builtin_unreachable();
}

std::unique_ptr<Block> start_block(Place place) {
  auto block = std::make_unique<Block>();
  block->place = place;
  block->left = running->threads;
  block->meeting.members = running->threads;
  block->warps = std::vector<Warp>(running->threads / WARP);
  for (Warp& w : block->warps) w.meeting.members = WARP;
  block->memory = std::make_unique<SharedMemory>(running->shared_bytes);
  for (unsigned i = 0; i < running->threads; ++i) {
    Thread& thread = block->threads.emplace_back();
    thread.here = {i, running->threads, place, running->grid};
    thread.block = block.get();
    thread.fiber.start(entry, "block " + text(place) + " thread " + std::to_string(i));
  }
  return block;
}

template <class T>
void put_in_order(std::vector<T>& items, std::mt19937& random) {
  if (options.order == Order::RANDOM) std::shuffle(items.begin(), items.end(), random);
}

// What each thread of a block does, one line a kind.
std::string report(const Block& block) {
  std::map<std::string, std::string> kinds;
  for (const Thread& thread : block.threads) {
    std::string kind = "have ended";
    if (!thread.done && (thread.waits || thread.spinning))
      kind = std::string(thread.spinning ? "spin at " : "wait at ") + thread.word + " (" +
             text(thread.line) + ")";
    else if (!thread.done)
      kind = "can run";
    std::string& list = kinds[kind];
    const unsigned i = thread.here.thread;
    const std::string last = std::to_string(i - 1);
    const size_t size = list.size();
    if (i && size >= last.size() && list.compare(size - last.size(), last.size(), last) == 0 &&
        (size == last.size() || !isdigit(list[size - last.size() - 1]))) {
      const size_t dash = list.find_last_of("-,");
      if (dash != std::string::npos && list[dash] == '-')
        list.resize(dash);
      list += "-" + std::to_string(i);
    } else {
      list += (list.empty() ? "" : ", ") + std::to_string(i);
    }
  }
  std::string answer = "  block " + text(block.place) + ":\n";
  for (const auto& [kind, list] : kinds) answer += "    threads " + list + " " + kind + "\n";
  return answer;
}

[[noreturn]] void stuck(const char* what, const std::vector<Block*>& blocks) {
  std::string answer;
  for (const Block* block : blocks)
    if (block->left) answer += report(*block);
  here = nullptr;
  fault("%s in kernel %s\n%s", what, running->kernel, answer.c_str());
}

// Resumes all threads of the blocks, pass after pass, until all have ended.
void run(const std::vector<Block*>& blocks, std::mt19937& random) {
  std::vector<Thread*> order;
  for (Block* block : blocks)
    for (Thread& thread : block->threads) order.push_back(&thread);
  if (options.order == Order::DOWN) std::reverse(order.begin(), order.end());
  long spun = 0;
  for (bool left = true; left;) {
    put_in_order(order, random);
    bool ran = false, moved = false;
    left = false;
    for (Thread* thread : order) {
      if (thread->can_run()) {
        thread->spinning = false;
        current = thread;
        here = &thread->here;
        thread->fiber.resume();
        here = nullptr;
        current = nullptr;
        ran = true;
        moved |= !thread->spinning;
      }
      left |= !thread->done;
    }
    if (left && !ran) stuck("deadlock", blocks);
    spun = moved ? 0 : spun + 1;
    if (left && spun > SPIN_LIMIT) stuck("livelock: threads spin for what nobody does", blocks);
  }
  for (Block* block : blocks) block->memory->check();
}

}  // namespace

std::string position() {
  if (!running) return "";
  std::string where = std::string("kernel ") + running->kernel;
  if (here) where += ", block " + text(here->block) + ", thread " + std::to_string(here->thread);
  return where;
}

std::string stack_of(const void* address) {
  if (current && current->fiber.holds(address)) return "thread " + std::to_string(here->thread);
  return "";
}

int launch(const Launch& launch, void (*body)(const void*), const void* arguments) {
  running = &launch;
  running_body = body;
  running_arguments = arguments;
  if (launch.threads == 0 || launch.threads % WARP || launch.threads > 1024)
    fault("%u threads a block; want a multiple of 32, at most 1024", launch.threads);
  const size_t count = size_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (!count) fault("the grid is empty");
  for (Array* array : arrays())
    if (array->use() == Use::WRITE) array->remember();
  std::mt19937 random(options.seed);
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = options.order == Order::DOWN ? count - 1 - i : i;
  put_in_order(order, random);
  std::vector<std::unique_ptr<Block>> kept;
  std::vector<Block*> together;
  for (size_t i : order) {
    kept.push_back(start_block({static_cast<unsigned>(i % launch.grid.x),
                                static_cast<unsigned>(i / launch.grid.x % launch.grid.y),
                                static_cast<unsigned>(i / launch.grid.x / launch.grid.y)}));
    together.push_back(kept.back().get());
    if (launch.resident) continue;
    run(together, random);
    together.clear();
#if !defined(SW_TSAN)  // there memory used again would be a race between blocks
    kept.clear();
#endif
  }
  if (launch.resident) run(together, random);
  acquire(&grid_end);
  kept.clear();
  for (const Array* array : arrays()) array->check();
  running = nullptr;
  return 0;
}

void barrier(Line line) {
  Meeting& meeting = current->block->meeting;
  Edge& edge = meeting.edges[meeting.phase & 1];
  release(&edge);
  meet(meeting, "barrier", line, nothing);
  acquire(&edge);
}

void warp_barrier(Line line) {
  Meeting& meeting = warp().meeting;
  Edge& edge = meeting.edges[meeting.phase & 1];
  release(&edge);
  meet(meeting, "warp_barrier", line, nothing);
  acquire(&edge);
}

uint64_t shuffle(uint64_t value, unsigned source, Line line) {
  Warp& w = warp();
  auto& values = w.values[w.meeting.phase & 1];
  values[lane()] = value;
  meet(w.meeting, "shuffle", line, nothing);
  return values[source];
}

uint32_t ballot(bool value, Line line) {
  Warp& w = warp();
  auto& values = w.values[w.meeting.phase & 1];
  values[lane()] = value;
  meet(w.meeting, "vote", line, nothing);
  uint32_t answer = 0;
  for (unsigned i = 0; i < WARP; ++i) answer |= static_cast<uint32_t>(values[i]) << i;
  return answer;
}

void mma_bf16_16x8x16(float* d, const uint32_t* a, const uint32_t* b, Line line) {
  Warp& w = warp();
  Fragments(&all)[WARP] = w.fragments[w.meeting.phase & 1];
  Fragments& mine = all[lane()];
  std::copy(a, a + 4, mine.a);
  std::copy(b, b + 2, mine.b);
  std::copy(d, d + 4, mine.d);
  meet(w.meeting, "mma_bf16_16x8x16", line, [&](uint64_t) {
    const auto half = [](uint32_t pair, int upper) {
      const uint32_t bits = upper ? pair & 0xffff0000u : pair << 16;
      float value;
      __builtin_memcpy(&value, &bits, 4);
      return value;
    };
    float rows[16][16], columns[16][8];  // A[row][k], B[k][column]
    for (unsigned i = 0; i < WARP; ++i) {
      const unsigned g = i / 4, t = i % 4;
      for (unsigned r = 0; r < 4; ++r)
        for (int u = 0; u < 2; ++u)
          rows[g + r % 2 * 8][2 * t + r / 2 * 8 + u] = half(all[i].a[r], u);
      for (unsigned r = 0; r < 2; ++r)
        for (int u = 0; u < 2; ++u) columns[2 * t + r * 8 + u][g] = half(all[i].b[r], u);
    }
    for (unsigned i = 0; i < WARP; ++i) {
      const unsigned g = i / 4, t = i % 4;
      for (unsigned r = 0; r < 4; ++r) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += rows[g + r / 2 * 8][k] * columns[k][2 * t + r % 2];
        all[i].d[r] += sum;
      }
    }
  });
  std::copy(mine.d, mine.d + 4, d);
}

void spin(Line line) {
  current->spinning = true;
  current->word = "spin_pause";
  current->line = line;
  current->fiber.leave(false);
}

void* shared(const void* key, size_t bytes, const char* name) {
  return current->block->memory->variable(key, bytes, name);
}
void* dynamic_shared() {
  if (!current->block->memory->dynamic()) fault("this launch has no dynamic shared memory");
  return current->block->memory->dynamic();
}

bool issue(const Copy& copy, Line line) {
  check_aligned(copy.to, 16, "copy_async_16 to shared memory", line);
  if (!current->block->memory->holds(copy.to, 16))
    fault("copy_async_16 (%s) writes outside the block's shared memory", text(line).c_str());
  if (copy.from) {
    check_aligned(copy.from, 16, "copy_async_16 from global memory", line);
    if (!array_at(copy.from) || current->block->memory->holds(copy.from, 1))
      fault("copy_async_16 (%s) reads an address that is in no global array", text(line).c_str());
  }
  const bool eager = options.copies == Copies::EAGER;
  // An eager copy has landed already; it still must be waited for.
  current->open.push_back(eager ? Copy{nullptr, nullptr} : copy);
  return eager;
}

void commit() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

bool due(int kept, Copy* copy) {
  auto& groups = current->groups;
  while (groups.size() > static_cast<size_t>(kept)) {
    auto& oldest = groups.front();
    while (!oldest.empty()) {
      *copy = oldest.front();
      oldest.erase(oldest.begin());
      if (copy->to) return true;
    }
    groups.pop_front();
  }
  return false;
}

void check_aligned(const void* address, size_t alignment, const char* word, Line line) {
  if (reinterpret_cast<uintptr_t>(address) % alignment)
    fault("%s (%s) at an address that is no multiple of %zu", word, text(line).c_str(), alignment);
}

void check_read_only(const void* address, size_t bytes, const char* word, Line line) {
  const Array* array = array_at(address);
  if (!array) return;
  if (array->changed(address, bytes))
    fault("%s (%s) reads %s, which this launch has written", word, text(line).c_str(),
          describe(address).c_str());
}

}  // namespace servewright::emulator
