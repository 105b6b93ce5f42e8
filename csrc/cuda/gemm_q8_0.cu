#include "gemm.cuh"

namespace servewright::cuda {

template int launch_type<Weight::Q8_0>(Projection, const GemmArgs&, Tiling, Stream, Start);

}  // namespace servewright::cuda
