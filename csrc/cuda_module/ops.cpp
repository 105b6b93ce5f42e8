#include "ops.h"

#include <stdexcept>

#include "../common/mlp_ops.h"
#include "runtime.h"

namespace servewright::cuda_module {
namespace {

// What the op may touch: its tensors, and those that others keep.
Regions all(const Tensors& tensors, std::initializer_list<const Regions*> kept) {
  Regions regions = tensors.regions();
  for (const Regions* more : kept) regions.insert(regions.end(), more->begin(), more->end());
  return regions;
}

cuda::Stream to_stream(uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

void check_vocab(const char* caller, int vocab) {
  if (vocab < 1 || vocab > cuda::MAX_SAMPLING_VOCAB)
    throw std::invalid_argument(std::string(caller) + ": vocab must be in 1.." +
                                std::to_string(cuda::MAX_SAMPLING_VOCAB) + ", got " +
                                std::to_string(vocab));
}

void check_attention(const char* caller, int heads, int kv_heads, int head_dim, int max_length,
                     int tokens) {
  constexpr int MAX_GROUP = 8;
  const auto check = [&](bool is_good, const char* wanted, int got) {
    if (!is_good)
      throw std::invalid_argument(std::string(caller) + ": " + wanted + ", got " +
                                  std::to_string(got));
  };
  check(kv_heads >= 1 && kv_heads <= 1 << 16, "kv_heads must be in 1..65536", kv_heads);
  check(heads >= kv_heads && heads % kv_heads == 0 && heads / kv_heads <= MAX_GROUP,
        "heads must be 1 to 8 for each KV head", heads);
  check(head_dim == 64 || head_dim == 128, "head_dim must be 64 or 128", head_dim);
  check(max_length >= 1 && max_length <= 1 << 24, "max_length must be in 1..2^24", max_length);
  check(tokens >= 0 && tokens <= cuda::MAX_DECODE_TOKENS, "tokens must be in 0..64", tokens);
}

cuda::NormInput read_normed(Tensors& tensors, const Object& x, const Object& norm, float eps,
                            int cols, int* tokens) {
  const float* rows = tensors.read<const float>(x, "x", {Size::any(tokens), cols});
  return {rows, tensors.read<const float>(norm, "norm", {cols}), eps};
}

Activation activation(const Object& wanted, const std::string& at) {
  const auto name = py::str(wanted).cast<std::string>();
  int found = 0;
  for (const char* known : ACTIVATION_NAMES) {
    if (name == known) return static_cast<Activation>(found);
    ++found;
  }
  throw std::invalid_argument("mlp: activations" + at + " is " + name +
                              "; choose none, relu, gelu, gelu_tanh, tanh, sigmoid or softmax");
}

}  // namespace

void embed(const Matrix& matrix, const Object& token_ids, const Object& out, uintptr_t stream) {
  Tensors tensors("embed", matrix.device());
  int tokens = 0;
  const auto* ids =
      tensors.read<const int32_t>(token_ids, "token_ids", {Size::any(&tokens)}, sizeof(int32_t));
  auto* x = tensors.read<float>(out, "out", {tokens, matrix.packed().cols});
  run("embed", matrix.device(), all(tensors, {&matrix.regions()}),
      [&] { return cuda::embed(matrix.packed(), ids, x, tokens, to_stream(stream)); });
}

void project_normed(const Matrix& matrix, const Object& x, const Object& norm, float eps,
                    const Object& out, uintptr_t stream) {
  Tensors tensors("project_normed", matrix.device());
  const cuda::PackedMatrix& w = matrix.packed();
  int tokens = 0, stride = 0;
  const cuda::NormInput in = read_normed(tensors, x, norm, eps, w.cols, &tokens);
  auto* to = tensors.read<float>(out, "out", {tokens, Size::at_least(w.rows, &stride)});
  run("project_normed", matrix.device(), all(tensors, {&matrix.regions()}),
      [&] { return cuda::project_normed(w, in, to, stride, tokens, to_stream(stream)); });
}

void project_residual(const Matrix& matrix, const Object& inp, const Object& x, uintptr_t stream) {
  Tensors tensors("project_residual", matrix.device());
  const cuda::PackedMatrix& w = matrix.packed();
  int tokens = 0;
  const auto* in = tensors.read<const bfloat16>(inp, "inp", {Size::any(&tokens), w.cols});
  auto* to = tensors.read<float>(x, "x", {tokens, w.rows});
  run("project_residual", matrix.device(), all(tensors, {&matrix.regions()}),
      [&] { return cuda::project_residual(w, in, to, tokens, to_stream(stream)); });
}

void gate_up(const Matrix& gate, const Matrix& up, const Object& x, const Object& norm, float eps,
             const Object& out, uintptr_t stream) {
  const cuda::PackedMatrix &g = gate.packed(), &u = up.packed();
  const auto text = [](const Matrix& matrix) {
    return std::string(matrix.type()) + " [" + std::to_string(matrix.packed().rows) + ", " +
           std::to_string(matrix.packed().cols) + "]";
  };
  if (g.type != u.type || g.rows != u.rows || g.cols != u.cols)
    throw std::invalid_argument("gate_up: up must be " + text(gate) + " as gate is, got " +
                                text(up));
  if (gate.device() != up.device())
    throw std::invalid_argument("gate_up: up must lie on device " + std::to_string(gate.device()) +
                                " as gate, got device " + std::to_string(up.device()));
  Tensors tensors("gate_up", gate.device());
  int tokens = 0;
  const cuda::NormInput in = read_normed(tensors, x, norm, eps, g.cols, &tokens);
  auto* to = tensors.read<bfloat16>(out, "out", {tokens, g.rows});
  run("gate_up", gate.device(), all(tensors, {&gate.regions(), &up.regions()}),
      [&] { return cuda::gate_up(g, u, in, to, tokens, to_stream(stream)); });
}

int64_t attention_workspace(int heads, int kv_heads, int head_dim, int max_length, int tokens) {
  check_attention("attention_workspace", heads, kv_heads, head_dim, max_length, tokens);
  return static_cast<int64_t>(
      cuda::attention_workspace(heads, kv_heads, head_dim, max_length, tokens));
}

void attention(const Object& qkv, const Object& cosines, const Object& sines, const Object& pool,
               const Object& page_table, const Object& lengths, const Object& tickets,
               const Object& partials, const Object& out, int max_length, bool interleaved,
               uintptr_t stream) {
  Tensors tensors("attention");
  cuda::AttentionArgs args = {};
  int tokens = 0;
  args.out = tensors.read<bfloat16>(
      out, "out", {Size::any(&tokens), Size::any(&args.heads), Size::any(&args.head_dim)});
  args.pool = tensors.read<bfloat16>(
      pool, "pool",
      {Size::at_least(1), 2, Size::any(&args.kv_heads), cuda::PAGE_POSITIONS, args.head_dim});
  check_attention("attention", args.heads, args.kv_heads, args.head_dim, max_length, tokens);
  const int pages = (max_length + cuda::PAGE_POSITIONS - 1) / cuda::PAGE_POSITIONS;
  const Size positions = Size::at_least(max_length), pairs = args.head_dim / 2;
  args.qkv = tensors.read<const float>(
      qkv, "qkv", {tokens, int64_t{args.heads + 2 * args.kv_heads} * args.head_dim});
  args.cosines = tensors.read<const float>(cosines, "cosines", {positions, pairs});
  args.sines = tensors.read<const float>(sines, "sines", {positions, pairs});
  args.page_table = tensors.read<const int32_t>(page_table, "page_table",
                                                {tokens, Size::at_least(pages, &args.table_width)},
                                                sizeof(int32_t));
  args.lengths = tensors.read<const int32_t>(lengths, "lengths", {tokens}, sizeof(int32_t));
  args.tickets = reinterpret_cast<unsigned*>(tensors.read<int32_t>(
      tickets, "tickets", {Size::at_least(int64_t{tokens} * args.kv_heads)}, sizeof(int32_t)));
  const size_t bytes =
      cuda::attention_workspace(args.heads, args.kv_heads, args.head_dim, max_length, tokens);
  args.partials = reinterpret_cast<float*>(
      tensors.read<uint8_t>(partials, "partials", {Size::at_least(static_cast<int64_t>(bytes))}));
  args.max_length = max_length;
  args.interleaved_rope = interleaved;
  const int device = tensors.device();
  const cuda::Processors held = processors(device);
  args.max_blocks = cuda::attention_blocks(args.head_dim, held.count, held.shared_bytes);
  run("attention", device, tensors.regions(),
      [&] { return cuda::attention(args, tokens, to_stream(stream)); });
}

int64_t sampling_workspace(int vocab, int rows) {
  check_vocab("sampling_workspace", vocab);
  if (rows < 0)
    throw std::invalid_argument("sampling_workspace: rows must be 0 or more, got " +
                                std::to_string(rows));
  return static_cast<int64_t>(cuda::sampling_workspace(vocab, rows));
}

void sample(const Object& logits, int vocab, const Sampling& sampling, const Object& workspace,
            uintptr_t stream) {
  check_vocab("sample", vocab);
  Tensors tensors("sample", sampling.device());
  cuda::SamplingArgs args = sampling.args();
  args.vocab = vocab;
  args.logits = tensors.read<const float>(
      logits, "logits", {sampling.rows(), Size::at_least(vocab, &args.logits_stride)});
  if (args.logits_stride % 4)
    throw std::invalid_argument("sample: logits must have rows of a multiple of 4, got " +
                                std::to_string(args.logits_stride));
  args.workspace = tensors.read<uint8_t>(
      workspace, "workspace", {Size::at_least(sampling_workspace(vocab, sampling.rows()))});
  run("sample", sampling.device(), all(tensors, {&sampling.kept().regions}),
      [&] { return cuda::sample(args, sampling.rows(), to_stream(stream)); });
}

int64_t mlp_workspace(const std::vector<int>& widths, int tokens) {
  std::vector<cuda::MlpLayer> layers;
  for (size_t i = 1; i < widths.size(); ++i)
    layers.push_back({nullptr, nullptr, widths[i], widths[i - 1], Activation::NONE});
  return static_cast<int64_t>(
      cuda::mlp_workspace(layers.data(), static_cast<int>(layers.size()), tokens));
}

void mlp(const Object& x, const py::sequence& weights, const py::sequence& biases,
         const py::sequence& activations, const Object& out, const Object& workspace,
         uintptr_t stream) {
  const size_t count = py::len(weights);
  if (count == 0 || py::len(biases) != count || py::len(activations) != count)
    throw std::invalid_argument(
        "mlp: each layer has weights, a bias or None, and an activation; got " +
        std::to_string(count) + " weights, " + std::to_string(py::len(biases)) + " biases, " +
        std::to_string(py::len(activations)) + " activations");
  Tensors tensors("mlp");
  constexpr size_t ANY_FLOAT = sizeof(float);  // alignment
  int tokens = 0, width = 0;
  const auto* from =
      tensors.read<const float>(x, "x", {Size::any(&tokens), Size::any(&width)}, ANY_FLOAT);
  std::vector<int> widths = {width};
  std::vector<cuda::MlpLayer> layers;
  for (size_t i = 0; i < count; ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    int rows = 0;
    const auto* w = tensors.read<const float>(py::object(weights[i]), "weights" + at,
                                              {Size::any(&rows), width}, ANY_FLOAT);
    if (rows < 1 || rows > cuda::MAX_MLP_WIDTH || width < 1 || width > cuda::MAX_MLP_WIDTH)
      throw std::invalid_argument("mlp: weights" + at + " must be [outputs, inputs], each 1 to " +
                                  std::to_string(cuda::MAX_MLP_WIDTH) + ", got [" +
                                  std::to_string(rows) + ", " + std::to_string(width) + "]");
    const py::object bias = biases[i];
    const float* b = nullptr;
    if (!bias.is_none()) b = tensors.read<const float>(bias, "biases" + at, {rows}, ANY_FLOAT);
    layers.push_back({w, b, rows, width, activation(py::object(activations[i]), at)});
    widths.push_back(width = rows);
  }
  auto* to = tensors.read<float>(out, "out", {tokens, width}, ANY_FLOAT);
  auto* work = tensors.read<uint8_t>(workspace, "workspace",
                                     {Size::at_least(mlp_workspace(widths, tokens))});
  const int device = tensors.device();
  const int blocks = cuda::mlp_blocks(processors(device).count, tokens);
  run("mlp", device, tensors.regions(), [&] {
    return cuda::mlp(layers.data(), static_cast<int>(count), from, tokens, to, work, blocks,
                     to_stream(stream));
  });
}

}  // namespace servewright::cuda_module
