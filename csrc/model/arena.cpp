#include "arena.h"

#include <sys/mman.h>

#include <new>
#include <utility>

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
  return *this;
}

}  // namespace servewright
