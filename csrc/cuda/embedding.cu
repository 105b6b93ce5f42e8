// Launcher of embedding.cuh.
#include "embedding.cuh"

namespace servewright::cuda {

int embed(const PackedMatrix& w, const int32_t* token_ids, float* x, int tokens, Stream stream,
          const NextNorm& next) {
  using embedding::gather_rows;
  constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
  if (tokens == 0) return 0;
  if (tokens < 0 || w.cols % 8) return INVALID_VALUE;
  const unsigned threads = embedding::THREADS;
  switch (w.type) {
    case Weight::BF16:
      return SW_LAUNCH(gather_rows<Weight::BF16>, tokens, threads, 0, stream, w, token_ids, x,
                       next);
    case Weight::Q8_0:
      return SW_LAUNCH(gather_rows<Weight::Q8_0>, tokens, threads, 0, stream, w, token_ids, x,
                       next);
    case Weight::Q4_0:
      return SW_LAUNCH(gather_rows<Weight::Q4_0>, tokens, threads, 0, stream, w, token_ids, x,
                       next);
    case Weight::Q4_1:
      return SW_LAUNCH(gather_rows<Weight::Q4_1>, tokens, threads, 0, stream, w, token_ids, x,
                       next);
  }
  return INVALID_VALUE;
}

}  // namespace servewright::cuda
