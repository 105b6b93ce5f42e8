// Memory straight from the kernel: reserved whole, committed page by page as it is written or ahead
// of that.
#pragma once
#include <cstddef>
#include <cstdint>

namespace servewright {

constexpr size_t HUGE_PAGE = size_t{2} << 20;

class Reservation {
 public:
  Reservation() = default;
  // `bytes` of zeros, aligned to 2 MiB. Throws std::bad_alloc. With `huge_pages` the kernel is
  // asked for 2 MiB pages: two threads read weights at 54 GB/s instead of 33.
  Reservation(size_t bytes, bool huge_pages);
  ~Reservation();
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  // Commits the next 2 MiB of what lies below `end` bytes and is not committed yet. Whether more of
  // it is left; false too where the kernel cannot (before 5.14) or does not want to.
  bool commit_next(size_t end);

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  size_t committed_ = 0;  // by commit_next: whole pages from the start
};

}  // namespace servewright
