#include "runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "pack.h"

namespace servewright {
namespace {

// Up to here every thread prepares all tokens' inputs for itself: 0.2 us a token of 576 against a
// barrier of 0.3 us and the other core's cache lines. A thread that comes late may read what others
// already write again; but then every chunk of the phase it prepares for is claimed, so nothing is
// computed from what it read.
constexpr int REDUNDANT_TOKENS = 4;
// Chunks of a thread's share: what a stolen core holds back is an eighth of it.
constexpr int CHUNKS_A_THREAD = 8;
// Of the KV cache, committed while idle beyond what steps have reached. A first write to a page of
// 2 MiB takes 0.2 ms where the kernel has it and 5 ms where its host must find it first; inside a
// step every thread waits for it.
constexpr size_t COMMIT_AHEAD = size_t{256} << 20;
// Each layer: norm, qkv, attention, finish, o, norm, gate and up, down.
constexpr int PHASES_A_LAYER = 8;
constexpr int OTHER_PHASES = 4;  // embed, norm, head, sampling

int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace

struct Runner::Plan {
  int block_tiles = 0;  // of a block of tokens
  int logits_stride = 0;
  bool is_redundant = false;
  bool is_narrowed = false;  // after K and V, the last layer goes on with the sampled tokens alone
  AttentionArgs attention{};
  KvLayer kv{};
};

void Runner::Wants::add(const Matrix& w) { (is_quantised(w.type) ? q8 : f32) = true; }

Runner::Runner(const Config& config, int num_blocks, int threads, const Kernels& kernels)
    : config_(config),
      kernels_(kernels),
      num_blocks_(num_blocks),
      threads_(threads),
      team_(threads) {
  const std::string why = unfit(config);
  if (!why.empty()) throw std::invalid_argument(why);
  if (num_blocks < 1)
    throw std::invalid_argument("num_blocks must be at least 1, got " + std::to_string(num_blocks));
  if (threads < 1 || threads > 1024)
    throw std::invalid_argument("threads must be in 1..1024, got " + std::to_string(threads));
  weights_ = std::make_unique<Weights>(config_, kernels_);
  const size_t block_bytes = kv_layer_elements() * config.layers * sizeof(uint16_t);
  if (block_bytes > SIZE_MAX / 4 / num_blocks) throw std::bad_alloc();
  kv_ = Reservation(block_bytes * num_blocks, true);
  for (int i = 0; i < config.rope_dims / 2; ++i) {
    double frequency = config.rope_scale * std::pow(config.rope_base, -2.0 * i / config.rope_dims);
    if (!config.rope_factors.empty()) frequency /= config.rope_factors[i];
    rope_frequencies_.push_back(frequency);
  }
  hidden_in_.resize(threads);
  attention_in_.resize(threads);
  head_in_.resize(threads);
  rows_.resize(threads);
}

size_t Runner::kv_layer_elements() const {
  return size_t{2} * config_.kv_heads * config_.head_dim * KV_POSITIONS;
}

void Runner::load(const std::string& name, const std::string& type, long long first_row,
                  const uint8_t* data, long long rows, long long row_bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!weights_) throw std::invalid_argument("load(" + name + "): the runner is closed");
  weights_->load(name, type, first_row, data, rows, row_bytes);
  weights_bytes_ = weights_->bytes();
}

void Runner::seal() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!weights_) throw std::invalid_argument("seal(): the runner is closed");
  weights_->seal();
  for (const LayerWeights& layer : weights_->layers) {
    for (const Matrix* w : {&layer.q, &layer.k, &layer.v, &layer.gate, &layer.up})
      hidden_wants_.add(*w);
    attention_wants_.add(layer.o);
    ffn_wants_.add(layer.down);
  }
  head_wants_.add(weights_->head);
}

bool Runner::commit_ahead() {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t block_bytes = kv_layer_elements() * config_.layers * sizeof(uint16_t);
  return kv_.commit_next(kv_blocks_reached_ * block_bytes + COMMIT_AHEAD);
}

void Runner::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  weights_.reset();
  kv_ = Reservation();
}

Activations Runner::activations(ActivationBuffer& buffer, const Wants& wants, int tokens,
                                int cols) {
  return buffer.ensure(kernels_, tokens, cols, wants.q8, wants.f32);
}

void Runner::plan(const StepInput& in, Plan* plan) {
  const int tokens = in.tokens;
  plan->block_tiles = BLOCK_TOKENS / kernels_.tile_tokens;
  plan->is_redundant = tokens <= REDUNDANT_TOKENS;
  plan->is_narrowed = !plan->is_redundant && in.samples < tokens;
  plan->logits_stride = ceil_div(config_.vocab_size, MAX_LANES) * MAX_LANES;

  x_.ensure(size_t(tokens) * config_.hidden_size);
  q_.ensure(size_t(tokens) * config_.q_size());
  attended_.ensure(size_t(tokens) * config_.q_size());
  if (plan->is_narrowed) sampled_x_.ensure(size_t(in.samples) * config_.hidden_size);
  cosines_.ensure(size_t(tokens) * config_.head_dim);
  sines_.ensure(size_t(tokens) * config_.head_dim);
  logits_.ensure(size_t(in.samples) * plan->logits_stride);
  for (int t = 0; t < threads_; ++t) {
    if (t > 0 && !plan->is_redundant && in.samples > REDUNDANT_TOKENS) break;
    if (t == 0 || plan->is_redundant) {
      activations(hidden_in_[t], hidden_wants_, tokens, config_.hidden_size);
      activations(attention_in_[t], attention_wants_, tokens, config_.q_size());
    }
    activations(head_in_[t], head_wants_, in.samples, config_.hidden_size);
  }
  for (Buffer<float>& row : rows_) row.ensure(config_.q_size());
  activations(ffn_in_, ffn_wants_, tokens, config_.ffn_size);
  while (in.samples > 0 && static_cast<int>(samplers_.size()) < threads_)
    samplers_.push_back(std::make_unique<Sampler>(kernels_, config_.vocab_size));
  finite_.assign(in.samples, 1);

  int32_t* positions = positions_.ensure(tokens);
  int32_t* blocks = kv_blocks_.ensure(tokens);
  int32_t* slots = kv_slots_.ensure(tokens);
  for (int s = 0; s < in.sequences; ++s)
    for (int t = in.seq_starts[s]; t < in.seq_starts[s + 1]; ++t) {
      positions[t] = in.context_starts[s] + t - in.seq_starts[s];
      blocks[t] = in.block_tables[size_t(s) * in.table_width + positions[t] / KV_POSITIONS];
      slots[t] = positions[t] % KV_POSITIONS;
      kv_blocks_reached_ = std::max(kv_blocks_reached_, blocks[t] + 1);
    }
  plan->kv = KvLayer{reinterpret_cast<uint16_t*>(kv_.data()), kv_layer_elements() * config_.layers,
                     config_.kv_heads, config_.head_dim};
  plan_attention(in, plan);
}

void Runner::plan_attention(const StepInput& in, Plan* plan) {
  const int group = config_.heads / config_.kv_heads;
  const auto splits_of = [&](int s) {
    return ceil_div(in.context_starts[s] + in.seq_starts[s + 1] - in.seq_starts[s],
                    SPLIT_POSITIONS);
  };
  // Long contexts of few sequences: spread their splits over the threads.
  int whole_items = 0, max_splits = 1;
  for (int s = 0; s < in.sequences; ++s) {
    whole_items += config_.kv_heads * ceil_div((in.seq_starts[s + 1] - in.seq_starts[s]) * group,
                                               kernels_.attention_rows);
    max_splits = std::max(max_splits, splits_of(s));
  }
  const bool wants_splits = threads_ > 1 && max_splits > 1 && plan->is_redundant &&
                            whole_items < threads_ * CHUNKS_A_THREAD;
  int32_t* slots = partial_slots_.ensure(in.tokens);
  int32_t* splits = partial_splits_.ensure(in.tokens);
  int used = 0;
  items_.clear();
  for (int s = 0; s < in.sequences; ++s) {
    const int count = splits_of(s);
    const bool is_split = wants_splits && count > 1;
    for (int t = in.seq_starts[s]; t < in.seq_starts[s + 1]; ++t) {
      slots[t] = is_split ? used++ : -1;
      splits[t] = positions_.data()[t] / SPLIT_POSITIONS + 1;
    }
    const int rows = (in.seq_starts[s + 1] - in.seq_starts[s]) * group;
    for (int head = 0; head < config_.kv_heads; ++head)
      for (int row = 0; row < rows; row += kernels_.attention_rows) {
        const int row_end = std::min(row + kernels_.attention_rows, rows);
        for (int split = 0; split < (is_split ? count : 1); ++split)
          items_.push_back(
              AttentionItem{s, head, row, row_end, split, is_split ? split + 1 : count, is_split});
      }
  }
  sampled_items_.clear();
  if (plan->is_narrowed) {
    is_sampled_.assign(in.tokens, 0);
    for (int i = 0; i < in.samples; ++i) is_sampled_[in.sample_tokens[i]] = 1;
    for (const AttentionItem& item : items_) {
      const auto first = is_sampled_.begin() + in.seq_starts[item.sequence];
      if (std::count(first + item.row_begin / group, first + ceil_div(item.row_end, group), 1))
        sampled_items_.push_back(item);
    }
  }
  AttentionArgs& args = plan->attention;
  args.q = q_.data();
  args.out = attended_.data();
  args.heads = config_.heads;
  args.seq_starts = in.seq_starts;
  args.context_starts = in.context_starts;
  args.block_tables = in.block_tables;
  args.table_width = in.table_width;
  args.max_splits = max_splits;
  args.partials =
      partials_.ensure(size_t(used) * config_.heads * max_splits * (config_.head_dim + 2));
  args.partial_slots = slots;
  args.partial_splits = splits;
}

void Runner::embed(const StepInput& in, int begin, int end) {
  const int dim = config_.head_dim;
  for (int t = begin; t < end; ++t) {
    unpack_row(kernels_, weights_->embedding, in.token_ids[t],
               x_.data() + size_t(t) * config_.hidden_size);
    float* cosines = cosines_.data() + size_t(t) * dim;
    float* sines = sines_.data() + size_t(t) * dim;
    for (int d = 0; d < dim; d += 2) {
      const bool is_rotated = d < config_.rope_dims;
      const double angle = is_rotated ? positions_.data()[t] * rope_frequencies_[d / 2] : 0.0;
      cosines[d] = cosines[d + 1] = static_cast<float>(std::cos(angle));
      sines[d + 1] = static_cast<float>(std::sin(angle));
      sines[d] = -sines[d + 1];
    }
  }
}

void Runner::run(const StepInput& in, const Plan& plan, int thread, StepOutput* out) {
  const Kernels& k = kernels_;
  const int tokens = in.tokens, hidden = config_.hidden_size;
  int at = 0;  // the phase
  const auto phase = [&](int units, const auto& work) {
    team_.phase(&at, thread, units, units / (threads_ * CHUNKS_A_THREAD), work);
  };
  // Prepares inputs: all of them by every thread for itself, or together. A tile's tokens are
  // quantised at once by a thread where there are tiles enough: that is cheaper, and two cores
  // seldom write to one line.
  const auto prepare = [&](int count, bool is_redundant, const auto& work) {
    const int tile = std::min(kernels_.tile_tokens, MARKS), tiles = ceil_div(count, tile);
    if (is_redundant)
      work(0, count);
    else if (tiles < threads_)
      phase(count, work);
    else
      phase(tiles, [&](int begin, int end) { work(begin * tile, std::min(end * tile, count)); });
  };
  // Row groups times blocks of tokens, the blocks outside. Where a thread gets several tiles, a
  // block is its share of them: then it meets the same tokens in every phase, and what they leave
  // need not come from another core.
  const auto project = [&](int groups, int tiles, const auto& work) {
    const bool is_shared = tiles >= 2 * threads_;
    const int block_tiles =
        is_shared ? std::min(plan.block_tiles, ceil_div(tiles, threads_)) : plan.block_tiles;
    phase(groups * ceil_div(tiles, block_tiles), [&](int begin, int end) {
      while (begin < end) {
        const int block = begin / groups, first = begin % groups;
        const int count = std::min(end - begin, groups - first);
        work(first, first + count, block * block_tiles, std::min((block + 1) * block_tiles, tiles));
        begin += count;
      }
    });
  };
  const auto groups = [&](const Matrix& w) { return ceil_div(w.rows, k.lanes); };

  // Tokens that still matter, their rows of the residual stream and the inputs made of them.
  int count = 0, tiles = 0;
  float* x = nullptr;
  Activations hidden_in, attention_in, ffn_in;
  const auto take = [&](int rows, float* from) {
    const int own = plan.is_redundant ? thread : 0;
    count = rows;
    tiles = ceil_div(rows, k.tile_tokens);
    x = from;
    hidden_in = activations(hidden_in_[own], hidden_wants_, rows, hidden);
    attention_in = activations(attention_in_[own], attention_wants_, rows, config_.q_size());
    ffn_in = activations(ffn_in_, ffn_wants_, rows, config_.ffn_size);
  };
  take(tokens, x_.data());

  phase(tokens, [&](int begin, int end) { embed(in, begin, end); });
  for (int l = 0; l < config_.layers; ++l) {
    const LayerWeights& w = weights_->layers[l];
    KvLayer kv = plan.kv;
    kv.base += l * kv_layer_elements();

    const auto norm = [&](const float* weight) {
      const NormArgs args{x, size_t(hidden), nullptr, weight, config_.norm_eps, hidden_in};
      prepare(count, plan.is_redundant, [&](int begin, int end) { k.norm(args, begin, end); });
    };
    norm(w.attention_norm);
    const QkvArgs qkv{w.q,
                      w.k,
                      w.v,
                      hidden_in,
                      cosines_.data(),
                      sines_.data(),
                      1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                      q_.data(),
                      kv,
                      kv_blocks_.data(),
                      kv_slots_.data()};
    project(groups(w.q) + groups(w.k) + groups(w.v), tiles,
            [&](int begin, int end, int tile, int tile_end) {
              k.qkv(qkv, begin, end, tile, tile_end);
            });

    const bool is_narrowed = plan.is_narrowed && l == config_.layers - 1;
    const std::vector<AttentionItem>& items = is_narrowed ? sampled_items_ : items_;
    AttentionArgs attention = plan.attention;
    attention.kv = kv;
    attention.items = items.data();
    attention.item_count = static_cast<int>(items.size());
    phase(static_cast<int>(items.size()),
          [&](int begin, int end) { k.attention(attention, begin, end); });
    if (is_narrowed) {
      take(in.samples, sampled_x_.data());
      const NormArgs gather{
          attended_.data(), size_t(config_.q_size()), in.sample_tokens, nullptr, 0.0f,
          attention_in};
      phase(count, [&](int begin, int end) {
        k.norm(gather, begin, end);
        for (int i = begin; i < end; ++i)
          std::copy_n(x_.data() + size_t(in.sample_tokens[i]) * hidden, hidden,
                      x + size_t(i) * hidden);
      });
    } else {
      prepare(count, plan.is_redundant, [&](int begin, int end) {
        k.finish_attention(attention, attention_in, rows_[thread].data(), begin, end);
      });
    }
    const ProjectArgs o{w.o, attention_in, x, size_t(hidden), true};
    project(groups(w.o), tiles, [&](int begin, int end, int tile, int tile_end) {
      k.project(o, begin, end, tile, tile_end);
    });

    norm(w.ffn_norm);
    const GateUpArgs gate_up{w.gate, w.up, hidden_in, ffn_in};
    project(config_.ffn_size / BLOCK, tiles, [&](int begin, int end, int tile, int tile_end) {
      k.gate_up(gate_up, begin, end, tile, tile_end);
    });
    const ProjectArgs down{w.down, ffn_in, x, size_t(hidden), true};
    project(groups(w.down), tiles, [&](int begin, int end, int tile, int tile_end) {
      k.project(down, begin, end, tile, tile_end);
    });
  }

  if (in.samples == 0) return;
  const bool is_redundant = in.samples <= REDUNDANT_TOKENS;
  const Activations head_in =
      activations(head_in_[is_redundant ? thread : 0], head_wants_, in.samples, hidden);
  const NormArgs norm{x,
                      size_t(hidden),
                      plan.is_narrowed ? nullptr : in.sample_tokens,
                      weights_->output_norm,
                      config_.norm_eps,
                      head_in};
  prepare(in.samples, is_redundant, [&](int begin, int end) { k.norm(norm, begin, end); });
  const ProjectArgs head{weights_->head, head_in, logits_.data(), size_t(plan.logits_stride),
                         false};
  project(groups(weights_->head), ceil_div(in.samples, k.tile_tokens),
          [&](int begin, int end, int tile, int tile_end) {
            k.project(head, begin, end, tile, tile_end);
          });
  team_.phase(&at, thread, in.samples, 1, [&](int begin, int end) {
    for (int row = begin; row < end; ++row) sample(in, row, samplers_[thread].get(), out);
  });
}

void Runner::sample(const StepInput& in, int row, Sampler* sampler, StepOutput* out) {
  const int vocab = config_.vocab_size;
  const float* logits = logits_.data() + size_t(row) * (ceil_div(vocab, MAX_LANES) * MAX_LANES);
  if (in.return_logits)
    std::copy(logits, logits + vocab, out->logits.begin() + size_t(row) * vocab);
  ScanResult scan;
  kernels_.scan(logits, vocab, &scan);
  finite_[row] = scan.finite != 0;
  const SamplingRow params = sampling_row(in, row);
  out->token_ids[row] = sampler->draw(logits, scan, params);
  if (params.wants_logprob || params.top_logprobs > 0)
    sampler->logprobs(logits, scan, params, out->token_ids[row], &out->logprobs[row],
                      out->top_ids.data() + size_t(row) * out->top_width,
                      out->top_logprobs.data() + size_t(row) * out->top_width);
}

void Runner::step(const StepInput& in, StepOutput* out) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!weights_) throw std::invalid_argument("step: the runner is closed");
  if (!weights_->is_sealed()) throw std::invalid_argument("step: call seal() after loading");
  check_step(in, config_, num_blocks_);
  for (int i = 0; i < in.samples; ++i)
    out->top_width = std::max(out->top_width, static_cast<int>(in.top_logprobs[i]));
  out->token_ids.resize(in.samples);
  out->logprobs.resize(in.samples);
  out->top_ids.resize(size_t(in.samples) * out->top_width);
  out->top_logprobs.resize(size_t(in.samples) * out->top_width);
  if (in.return_logits) out->logits.resize(size_t(in.samples) * config_.vocab_size);
  if (in.tokens == 0) return;
  Plan p;
  plan(in, &p);
  team_.reset(config_.layers * PHASES_A_LAYER + OTHER_PHASES);
  run_on_pool(threads_, [&](int thread) { run(in, p, thread, out); });
  for (const uint8_t finite : finite_) out->finite = out->finite && finite;
}

}  // namespace servewright
