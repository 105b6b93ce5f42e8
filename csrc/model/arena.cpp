#include "arena.h"

#include <sys/mman.h>

#include <new>
#include <utility>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace servewright {

Reservation::Reservation(size_t bytes, bool huge_pages) {
  if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
  mapped_bytes_ = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw std::bad_alloc();
  }
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapping_);
  data_ = reinterpret_cast<uint8_t*>((start + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
  bytes_ = bytes;
  if (huge_pages) madvise(data_, mapped_bytes_ - HUGE_PAGE, MADV_HUGEPAGE);  // a wish, no more
}

Reservation::~Reservation() {
  if (mapping_) munmap(mapping_, mapped_bytes_);
}

Reservation::Reservation(Reservation&& other) noexcept { *this = std::move(other); }

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(committed_, other.committed_);
  return *this;
}

bool Reservation::commit_next(size_t end) {
  if (end > bytes_) end = bytes_;
  if (committed_ >= end) return false;
  if (madvise(data_ + committed_, HUGE_PAGE, MADV_POPULATE_WRITE) != 0) {
    committed_ = bytes_;
    return false;
  }
  committed_ += HUGE_PAGE;
  return committed_ < end;
}

}  // namespace servewright
