// A dense network: layers in float32, each y = activation(W x + bias), run in one call.
#pragma once
#include <vector>

#include "../common/kernels.h"
#include "arena.h"
#include "pool.h"

namespace servewright {

constexpr int MAX_DENSE_WIDTH = 4096;

// Whose memory the pointers are, the caller says: they must live as long as it runs.
struct DenseLayer {
  const void* weights;  // [rows, cols]
  TensorType type;      // F32, F16 or BF16
  size_t stride;        // numbers from row to row
  const float* bias;    // [rows], or null
  int rows, cols;
  Activation activation;
};

class Network {
 public:
  // Layers fit one another: layers[i].rows == layers[i + 1].cols.
  explicit Network(std::vector<DenseLayer> layers);
  int inputs() const { return layers_.front().cols; }
  int outputs() const { return layers_.back().rows; }
  // x [tokens, inputs], y [tokens, outputs], dense. Takes no lock and keeps no state: any number of
  // threads may call it. Uses `threads` at most, of the pool, and one alone for little work;
  // neither that nor the other tokens change a bit.
  void run(const Kernels& kernels, const float* x, int tokens, float* y, int threads) const;

  // Copies weights into rows of whole cache lines, which the network then owns.
  void keep();

 private:
  // The place of one thread in its team's program.
  struct Place {
    Team& team;
    int thread;
    int* phase;
  };
  void run_chunk(const Kernels& kernels, const float* x, int tokens, float* y, float* workspace,
                 const Place& place) const;

  std::vector<DenseLayer> layers_;
  Reservation kept_;
  size_t multiplications_ = 0;  // a token
  size_t weights_bytes_ = 0;
  int widest_ = 0;    // of the layers between, in whole cache lines; two of them a token
  int unzipped_ = 0;  // floats of a token's unzipped inputs
};

}  // namespace servewright
