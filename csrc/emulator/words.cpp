// The words of the vocabulary that need more than the running thread: meetings, copies, checks.
#include <string.h>

#include <algorithm>
#include <utility>

#include "block.h"
#include "fault.h"
#include "fiber.h"
#include "grid.h"
#include "memory.h"

namespace servewright::emulator {
namespace {

Warp& warp() { return current->block->warps[current->here.thread / WARP]; }
unsigned lane() { return current->here.thread % WARP; }

bool same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

// Returns when all members have come; the last to come runs `last` first.
template <class Last>
void meet(Meeting& meeting, const char* word, Line line, const Last& last) {
  Thread* thread = current;
  thread->word = word;
  thread->line = line;
  if (meeting.arrived == 0) {
    meeting.word = word;
    meeting.line = line;
    meeting.first = thread->here.thread;
  } else if (meeting.line.line != line.line || !same(meeting.word, word) ||
             !same(meeting.line.file, line.file)) {
    fault(
        "threads that must meet are at different places: thread %u at %s (%s), thread %u at %s "
        "(%s)",
        meeting.first, meeting.word, text(meeting.line).c_str(), thread->here.thread, word,
        text(line).c_str());
  }
  const uint64_t phase = meeting.phase;
  if (++meeting.arrived == meeting.members) {
    last();
    meeting.arrived = 0;
    ++meeting.phase;
    return;
  }
  thread->waits = &meeting;
  thread->phase = phase;
  while (meeting.phase == phase) thread->fiber.leave(false);
  thread->waits = nullptr;
}

void meet_and_publish(Meeting& meeting, const char* word, Line line) {
  Edge& edge = meeting.edges[meeting.phase & 1];
  release(&edge);
  meet(meeting, word, line, [] {});
  acquire(&edge);
}

// The values that the warp's lanes gave.
const uint64_t (&exchange(uint64_t value, const char* word, Line line)) [WARP] {
  Warp& w = warp();
  auto& values = w.values[w.meeting.phase & 1];
  values[lane()] = value;
  meet(w.meeting, word, line, [] {});
  return values;
}

// From the hardware that copies to whoever waits for the group.
void say_landed(Group& group) {
  start_copying(false);
  release(group.landed.get());
  end_copying();
}

float half_of(uint32_t pair, unsigned upper) {
  const uint32_t bits = upper ? pair & 0xffff0000u : pair << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// D += A B on the fragments of a whole warp. Source of the layout: PTX ISA 9.0, "Matrix Fragments
// for mma.m16n8k16 with floating point type".
void multiply(Fragments (&lanes)[WARP]) {
  typedef float Columns __attribute__((vector_size(4 * sizeof(float))));
  float a[16][16];   // [row][k]
  Columns b[16][2];  // [k][column / 4]
  for (unsigned i = 0; i < WARP; ++i) {
    const unsigned g = i / 4, t = i % 4;
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned r = 0; r < 4; ++r)
        a[g + r % 2 * 8][2 * t + r / 2 * 8 + half] = half_of(lanes[i].a[r], half);
      for (unsigned r = 0; r < 2; ++r)
        b[2 * t + r * 8 + half][g / 4][g % 4] = half_of(lanes[i].b[r], half);
    }
  }
  float sums[16][8];
  for (unsigned row = 0; row < 16; ++row) {
    Columns left = {}, right = {};  // each by ascending k, in registers
    for (unsigned k = 0; k < 16; ++k) {
      left += a[row][k] * b[k][0];
      right += a[row][k] * b[k][1];
    }
    memcpy(sums[row], &left, sizeof left);
    memcpy(sums[row] + 4, &right, sizeof right);
  }
  for (unsigned i = 0; i < WARP; ++i)
    for (unsigned r = 0; r < 4; ++r) lanes[i].d[r] += sums[i / 4 + r / 2 * 8][2 * (i % 4) + r % 2];
}

}  // namespace

void barrier(Line line) { meet_and_publish(current->block->meeting, "barrier", line); }
void warp_barrier(Line line) { meet_and_publish(warp().meeting, "warp_barrier", line); }

uint64_t shuffle(uint64_t value, unsigned source, Line line) {
  return exchange(value, "shuffle", line)[source];
}

uint32_t ballot(bool value, Line line) {
  const auto& values = exchange(value, "vote", line);
  uint32_t answer = 0;
  for (unsigned i = 0; i < WARP; ++i) answer |= static_cast<uint32_t>(values[i]) << i;
  return answer;
}

void mma_bf16_16x8x16(float* d, const uint32_t* a, const uint32_t* b, Line line) {
  Warp& w = warp();
  Fragments(&lanes)[WARP] = w.fragments[w.meeting.phase & 1];
  Fragments& mine = lanes[lane()];
  std::copy(a, a + 4, mine.a);
  std::copy(b, b + 2, mine.b);
  std::copy(d, d + 4, mine.d);
  meet(w.meeting, "mma_bf16_16x8x16", line, [&] { multiply(lanes); });
  std::copy(mine.d, mine.d + 4, d);
}

void spin(Line line) {
  current->spinning = true;
  current->word = "spin_pause";
  current->line = line;
  current->fiber.leave(false);
}

void wait_previous_launch(Line line) {
  Thread* thread = current;
  thread->waited = true;
  if (previous_end.members) {
    thread->word = "wait_previous_launch";
    thread->line = line;
    thread->waits = &previous_end;
    thread->phase = previous_end.phase;
    while (previous_end.phase == thread->phase) thread->fiber.leave(false);
    thread->waits = nullptr;
  }
  acquire_previous_launch();
}

void let_next_launch(Line line) {
  if (!current->waited)
    fault("let_next_launch (%s) stands before wait_previous_launch", text(line).c_str());
}

void* shared(const void* key, size_t bytes, const char* name) {
  return current->block->memory->variable(key, bytes, name);
}

void* dynamic_shared() {
  void* memory = current->block->memory->dynamic();
  if (!memory) fault("this launch has no dynamic shared memory");
  return memory;
}

bool issue(const Copy& copy, Line line) {
  check_access(copy.to, 16, 16, "copy_async_16 to shared memory", line);
  if (!current->block->memory->holds(copy.to, 16))
    fault("copy_async_16 (%s) writes outside the block's shared memory", text(line).c_str());
  if (copy.from) {
    check_access(copy.from, 16, 16, "copy_async_16 from global memory", line);
    if (!array_at(copy.from))
      fault("copy_async_16 (%s) reads an address that is in no global array", text(line).c_str());
  }
  const bool eager = options.copies == Copies::EAGER;
  // An eager copy has landed already, and must be waited for all the same.
  current->open.push_back(eager ? Copy{nullptr, nullptr} : copy);
  return eager;
}

void start_copying(bool issuing) {
  if (issuing) release(&current->issued);
  current->fiber.start_copying(__builtin_return_address(0));
  if (issuing) acquire(&current->issued);
}

void end_copying() { current->fiber.end_copying(); }

void commit() {
  Group& group = current->groups.emplace_back();
  std::swap(group.copies, current->open);
  group.landed = std::make_unique<Edge>();
  if (options.copies == Copies::EAGER) say_landed(group);
}

bool due(int kept, Copy* copy) {
  auto& groups = current->groups;
  for (; groups.size() > static_cast<size_t>(kept); groups.erase(groups.begin())) {
    Group& oldest = groups.front();
    while (!oldest.copies.empty()) {
      *copy = oldest.copies.front();
      oldest.copies.erase(oldest.copies.begin());
      if (copy->to) return true;
    }
    if (options.copies == Copies::LAZY) say_landed(oldest);
    acquire(oldest.landed.get());
  }
  return false;
}

void check_no_copy_is_left() {
  size_t left = current->open.size();
  for (const Group& group : current->groups) left += group.copies.size();
  if (left) fault("the thread ended with %zu async copies not waited for", left);
}

void check_access(const void* address, size_t bytes, size_t alignment, const char* word,
                  Line line) {
  if (reinterpret_cast<uintptr_t>(address) % alignment)
    fault("%s (%s) at an address that is no multiple of %zu: %s", word, text(line).c_str(),
          alignment, describe(address).c_str());
  const SharedMemory& memory = *current->block->memory;
  if (memory.near(address)) {
    if (!memory.holds(address, bytes))
      fault("%s (%s) is out of bounds: %s", word, text(line).c_str(), describe(address).c_str());
  } else if (const Array* array = array_at(address); array && !array->holds(address, bytes)) {
    fault("%s (%s) is out of bounds: %s", word, text(line).c_str(), describe(address).c_str());
  }
}

void check_read_only(const void* address, const char* word, Line line) {
  Array* array = array_at(address);
  if (!array) fault("%s (%s) reads %s", word, text(line).c_str(), describe(address).c_str());
  if (array->use() == Use::READ) return;
  if (is_beside() && array->changed_at(address))
    fault("%s (%s) reads %s, which the launch before wrote", word, text(line).c_str(),
          describe(address).c_str());
  if (array->written_at(address))
    fault("%s (%s) reads %s, which this launch has written", word, text(line).c_str(),
          describe(address).c_str());
  array->note_read(address);
}

}  // namespace servewright::emulator
