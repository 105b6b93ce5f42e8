#include "gemm.cuh"

namespace servewright::cuda {

template int launch_type<Weight::BF16>(Projection, const GemmArgs&, Tiling, Stream, Start);

}  // namespace servewright::cuda
