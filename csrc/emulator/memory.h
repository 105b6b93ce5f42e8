// Memory as kernels see it: global arrays between guards, and a block's shared memory.
//
// Fresh memory holds 0xFF bytes, which are NaN as bf16, half, float and double. Behind each global
// array, up to 15 bytes on, lies a page that may not be touched, and a page before it; the bytes
// between are compared after each launch. With AddressSanitizer they are poisoned too.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

namespace servewright::emulator {

enum class Use { READ, WRITE };

// An array of global memory, aligned to 16 bytes, known by its name in reports.
class Array {
 public:
  Array(std::string name, size_t bytes, Use use);
  // Memory of somebody else, which overlaps no other array: as it is, and without guards.
  Array(std::string name, char* data, size_t bytes, Use use);
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array();

  char* data() const { return data_; }
  const char* begin() const { return mapping_; }  // of the guard before it
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  Use use() const { return use_; }
  void protect();                        // no more writes, for an array that kernels read
  bool near(const void* address) const;  // inside, or in its guards
  bool holds(const void* address, size_t bytes) const;
  // What is wrong with it after a launch, empty when nothing: bytes beside it were written, or
  // bytes that the launch also read through the read-only path.
  std::string damage() const;

  // The read-only path is for what no launch changes while it runs: what was there before is kept,
  // and which 16 bytes were read.
  void remember();
  bool written_at(const void* address) const;
  void note_read(const void* address);

  // What a launch has changed, for the one beside its end. Between hide() and show() the memory is
  // as before that launch.
  void note_changes();
  bool changed_at(const void* address) const;  // these 16 bytes
  void hide();
  bool show();  // false when they were written meanwhile
  bool is_as_remembered() const;

 private:
  struct Change {
    size_t at;
    std::vector<char> old, hidden;
  };

  size_t offset(const void* address) const;

  std::string name_;
  size_t bytes_;
  Use use_;
  char* mapping_;
  size_t mapped_;
  char* data_;
  bool is_guarded_ = true;
  std::vector<char> before_;
  std::vector<bool> read_;  // by 16 bytes
  std::vector<Change> changes_;
};

// The array that an address lies in or beside; nullptr when none.
Array* array_at(const void* address);
const std::vector<Array*>& arrays();
// "byte 20 of array x (20 bytes)", or of a shared variable.
std::string describe(const void* address);

// Shared memory of one block. Static variables come one by one, as threads reach them, with
// gaps between.
class SharedMemory {
 public:
  explicit SharedMemory(size_t dynamic_bytes);
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  void reset();  // as if new, for the next block
  void* variable(const void* key, size_t bytes, const char* name);
  void* dynamic() const { return dynamic_; }
  bool holds(const void* address, size_t bytes) const;
  bool near(const void* address) const;  // inside, or in its gaps
  std::string describe(const void* address) const;
  std::string damage() const;  // the gap that was written, empty when none
  size_t static_bytes() const;

 private:
  struct Variable {
    const void* key;
    const char* name;
    char* begin;
    size_t bytes;
  };

  std::vector<Variable> variables_;
  char* arena_;
  size_t used_;
  char* mapping_ = nullptr;  // of the dynamic part, which ends at a guard page
  size_t mapped_ = 0;
  size_t dynamic_bytes_;
  char* dynamic_ = nullptr;
};

}  // namespace servewright::emulator
