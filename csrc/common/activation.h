// Activations of a dense layer, by the same numbers on the CPU and on CUDA.
#pragma once

namespace servewright {

// GELU is x Phi(x), GELU_TANH its form with tanh; SOFTMAX goes over the rows of a token.
enum class Activation : int { NONE, RELU, GELU, GELU_TANH, TANH, SIGMOID, SOFTMAX };
// As Python writes them, in that order.
constexpr const char* ACTIVATION_NAMES[] = {"none", "relu",    "gelu",   "gelu_tanh",
                                            "tanh", "sigmoid", "softmax"};

}  // namespace servewright
