#include "gemm.cuh"

namespace servewright::cuda {

template int launch_type<Weight::Q4_1>(Projection, const GemmArgs&, Tiling, Stream, Start);

}  // namespace servewright::cuda
