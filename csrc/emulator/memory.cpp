#include "memory.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "fault.h"

#if defined(SW_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace servewright::emulator {
namespace {

constexpr size_t PAGE = 4096;
constexpr int FRESH = 0xff;
constexpr size_t GAP = 128;
constexpr size_t STATIC_LIMIT = 48 << 10;    // CUDA's, for static shared memory
constexpr size_t DYNAMIC_LIMIT = 163 << 10;  // sm_80's, the smaller of our targets
constexpr size_t ARENA = 2 * STATIC_LIMIT;   // with gaps

size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

bool fresh(const char* begin, const char* end) {
  return std::all_of(begin, end, [](char c) { return c == static_cast<char>(FRESH); });
}

// For AddressSanitizer. Its macros would do nothing here: this file is compiled without it.
#if defined(SW_ASAN)
void poison(const char* p, size_t n) { __asan_poison_memory_region(p, n); }
void unpoison(const char* p, size_t n) { __asan_unpoison_memory_region(p, n); }
#else
void poison(const char*, size_t) {}
void unpoison(const char*, size_t) {}
#endif

std::vector<Array*> known;  // by address
std::vector<SharedMemory*> shared_memories;

std::string place(const void* address, const char* begin, const std::string& name, size_t bytes) {
  return "byte " + std::to_string(static_cast<const char*>(address) - begin) + " of " + name +
         " (" + std::to_string(bytes) + " bytes)";
}

// Pages with an untouchable one at each end; returns the first usable byte.
char* guarded_pages(size_t bytes, char** mapping, size_t* mapped) {
  *mapped = up(bytes, PAGE) + 2 * PAGE;
  void* p = mmap(nullptr, *mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fault("no memory for %zu bytes", bytes);
  *mapping = static_cast<char*>(p);
  mprotect(*mapping + PAGE, up(bytes, PAGE), PROT_READ | PROT_WRITE);
  return *mapping + PAGE;
}

// The first array whose guards begin behind the address.
std::vector<Array*>::iterator after(const void* address) {
  return std::upper_bound(known.begin(), known.end(), address,
                          [](const void* p, const Array* array) { return p < array->begin(); });
}

}  // namespace

Array::Array(std::string name, size_t bytes, Use use)
    : name_(std::move(name)), bytes_(bytes), use_(use) {
  char* first = guarded_pages(bytes, &mapping_, &mapped_);
  const size_t usable = mapped_ - 2 * PAGE;
  data_ = first + usable - up(bytes, 16);
  memset(first, FRESH, usable);
  poison(mapping_, mapped_);
  unpoison(data_, bytes_);
  known.insert(after(mapping_), this);
}

Array::Array(std::string name, char* data, size_t bytes, Use use)
    : name_(std::move(name)),
      bytes_(bytes),
      use_(use),
      mapping_(data),
      mapped_(bytes),
      data_(data),
      is_guarded_(false) {
  known.insert(after(mapping_), this);
}

Array::~Array() {
  known.erase(std::find(known.begin(), known.end(), this));
  if (!is_guarded_) return;
  unpoison(mapping_, mapped_);
  munmap(mapping_, mapped_);
}

void Array::protect() { mprotect(mapping_ + PAGE, mapped_ - 2 * PAGE, PROT_READ); }

bool Array::near(const void* address) const {
  const char* p = static_cast<const char*>(address);
  return p >= mapping_ && p < mapping_ + mapped_;
}

bool Array::holds(const void* address, size_t bytes) const {
  const char* p = static_cast<const char*>(address);
  return p >= data_ && p + bytes <= data_ + bytes_;
}

std::string Array::damage() const {
  const char* first = mapping_ + PAGE;
  const char* last = mapping_ + mapped_ - PAGE;
  if (is_guarded_ && !fresh(first, data_)) return "bytes before array " + name_ + " were written";
  if (is_guarded_ && !fresh(data_ + bytes_, last))
    return "bytes behind the end of array " + name_ + " were written";
  for (size_t i = 0; i < read_.size(); ++i)
    if (read_[i] && written_at(data_ + 16 * i))
      return "load_16 has read " + describe(data_ + 16 * i) + ", which the same launch writes";
  return "";
}

void Array::remember() {
  if (use_ == Use::READ) return;
  before_.assign(data_, data_ + bytes_);
  read_.assign(bytes_ / 16, false);
}

bool Array::written_at(const void* address) const {
  return memcmp(address, before_.data() + offset(address), 16) != 0;
}

void Array::note_read(const void* address) { read_[offset(address) / 16] = true; }

void Array::note_changes() {
  changes_.clear();
  if (use_ == Use::READ) return;
  constexpr size_t PIECE = 256;
  for (size_t at = 0; at < bytes_; at += PIECE) {
    const size_t size = std::min(PIECE, bytes_ - at);
    const char* const old = before_.data() + at;
    if (memcmp(data_ + at, old, size)) changes_.push_back({at, {old, old + size}, {}});
  }
}

bool Array::changed_at(const void* address) const {
  const size_t at = offset(address);
  return std::any_of(changes_.begin(), changes_.end(), [&](const Change& change) {
    return at >= change.at && at - change.at + 16 <= change.old.size() &&
           memcmp(change.old.data() + (at - change.at), before_.data() + at, 16) != 0;
  });
}

void Array::hide() {
  for (Change& change : changes_) {
    char* const here = data_ + change.at;
    change.hidden.assign(here, here + change.old.size());
    memcpy(here, change.old.data(), change.old.size());
  }
}

bool Array::show() {
  bool is_untouched = true;
  for (const Change& change : changes_) {
    is_untouched &= memcmp(data_ + change.at, change.old.data(), change.old.size()) == 0;
    memcpy(data_ + change.at, change.hidden.data(), change.hidden.size());
  }
  return is_untouched;
}

bool Array::is_as_remembered() const {
  return use_ == Use::READ || memcmp(data_, before_.data(), bytes_) == 0;
}

size_t Array::offset(const void* address) const {
  return static_cast<size_t>(static_cast<const char*>(address) - data_);
}

Array* array_at(const void* address) {
  const auto next = after(address);
  return next != known.begin() && next[-1]->near(address) ? next[-1] : nullptr;
}

const std::vector<Array*>& arrays() { return known; }

std::string describe(const void* address) {
  if (const Array* array = array_at(address))
    return place(address, array->data(), "array " + array->name(), array->bytes());
  for (const SharedMemory* memory : shared_memories)
    if (memory->near(address)) return memory->describe(address);
  return "an address of no array";
}

SharedMemory::SharedMemory(size_t dynamic_bytes)
    : used_(ARENA), dynamic_bytes_(dynamic_bytes) {
  if (dynamic_bytes > DYNAMIC_LIMIT)
    fault("%zu bytes of dynamic shared memory; at most %zu fit", dynamic_bytes, DYNAMIC_LIMIT);
  shared_memories.push_back(this);
  arena_ = static_cast<char*>(aligned_alloc(GAP, ARENA));
  if (dynamic_bytes) {
    char* first = guarded_pages(dynamic_bytes, &mapping_, &mapped_);
    dynamic_ = first + mapped_ - 2 * PAGE - up(dynamic_bytes, 16);
  }
  reset();
}

void SharedMemory::reset() {
  unpoison(arena_, ARENA);
  memset(arena_, FRESH, used_);
  poison(arena_, ARENA);
  variables_.clear();
  used_ = GAP;
  if (!dynamic_) return;
  unpoison(mapping_, mapped_);
  memset(mapping_ + PAGE, FRESH, mapped_ - 2 * PAGE);
  poison(mapping_, mapped_);
  unpoison(dynamic_, dynamic_bytes_);
}

SharedMemory::~SharedMemory() {
  shared_memories.erase(std::find(shared_memories.begin(), shared_memories.end(), this));
  unpoison(arena_, ARENA);
  free(arena_);
  if (mapping_) {
    unpoison(mapping_, mapped_);
    munmap(mapping_, mapped_);
  }
}

size_t SharedMemory::static_bytes() const {
  size_t sum = 0;
  for (const Variable& v : variables_) sum += up(v.bytes, 16);
  return sum;
}

void* SharedMemory::variable(const void* key, size_t bytes, const char* name) {
  for (const Variable& v : variables_)
    if (v.key == key) return v.begin;
  char* begin = arena_ + used_;
  variables_.push_back({key, name, begin, bytes});
  if (static_bytes() > STATIC_LIMIT)
    fault("%s makes it %zu bytes of static shared memory; at most %zu fit", name, static_bytes(),
          STATIC_LIMIT);
  used_ += up(bytes, GAP) + GAP;
  if (used_ > ARENA) fault("%zu shared variables; fewer and larger ones fit", variables_.size());
  unpoison(begin, bytes);
  return begin;
}

bool SharedMemory::holds(const void* address, size_t bytes) const {
  const char* p = static_cast<const char*>(address);
  if (dynamic_ && p >= dynamic_ && p + bytes <= dynamic_ + dynamic_bytes_) return true;
  return std::any_of(variables_.begin(), variables_.end(), [&](const Variable& v) {
    return p >= v.begin && p + bytes <= v.begin + v.bytes;
  });
}

bool SharedMemory::near(const void* address) const {
  const char* p = static_cast<const char*>(address);
  return (p >= arena_ && p < arena_ + ARENA) ||
         (mapping_ && p >= mapping_ && p < mapping_ + mapped_);
}

std::string SharedMemory::describe(const void* address) const {
  const char* p = static_cast<const char*>(address);
  for (const Variable& v : variables_)  // a gap counts to the variable before it
    if (p >= v.begin && p < v.begin + up(v.bytes, GAP) + GAP)
      return place(p, v.begin, std::string("shared variable ") + v.name, v.bytes);
  if (p >= arena_ && p < arena_ + ARENA) return "shared memory of no variable";
  return place(p, dynamic_, "the dynamic shared memory", dynamic_bytes_);
}

std::string SharedMemory::damage() const {
  if (!fresh(arena_, arena_ + GAP)) return "bytes before the first shared variable were written";
  for (const Variable& v : variables_)
    if (!fresh(v.begin + v.bytes, v.begin + up(v.bytes, GAP) + GAP))
      return std::string("bytes behind the end of shared variable ") + v.name + " were written";
  if (!dynamic_) return "";
  if (!fresh(mapping_ + PAGE, dynamic_))
    return "bytes before the dynamic shared memory were written";
  if (!fresh(dynamic_ + dynamic_bytes_, mapping_ + mapped_ - PAGE))
    return "bytes behind the end of the dynamic shared memory were written";
  return "";
}

}  // namespace servewright::emulator
