#include "attend.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "arrays.h"
#include "convert.h"
#include "model/pool.h"
#include "model/step.h"

namespace servewright {
namespace {

// A thread is worth waking for this many multiplications, of a wake's 50 us.
constexpr long long MULTIPLICATIONS_A_THREAD = 1 << 20;

struct Shapes {
  int tokens, sequences, new_tokens, heads, kv_heads, head_dim, pages, positions, width;
};

[[noreturn]] void refuse(const char* name, const std::string& wanted, const py::array& got) {
  throw std::invalid_argument("attend: " + std::string(name) + " must be " + wanted + ", got " +
                              shape_text(got));
}

void check_shapes(const Shapes& s, const py::array& qkv, const py::array& pool,
                  const py::array& cosines, const py::array& sines) {
  if (s.kv_heads < 1 || s.pages < 1 || pool.shape(2) != 2 || s.head_dim < KV_POSITIONS ||
      s.head_dim > MAX_HEAD_DIM || s.head_dim % KV_POSITIONS ||
      pool.shape(3) != s.head_dim * KV_POSITIONS)
    refuse("pool", "[pages, kv_heads, 2, 16 head_dim], head_dim a multiple of 16 up to 256", pool);
  if (s.heads < 1 || s.heads > 1 << 16 || s.heads % s.kv_heads)
    throw std::invalid_argument("attend: heads must be a multiple of the pool's " +
                                std::to_string(s.kv_heads) + ", got " + std::to_string(s.heads));
  const long long columns = (s.heads + 2LL * s.kv_heads) * s.head_dim;
  if (qkv.shape(1) != columns || (s.sequences ? s.tokens % s.sequences : s.tokens))
    refuse("qkv",
           "[" + std::to_string(s.sequences) + " times as many tokens each, " +
               std::to_string(columns) + "]",
           qkv);
  const int pairs = s.head_dim / 2;
  if (cosines.shape(1) != pairs)
    refuse("cosines", "[positions, " + std::to_string(pairs) + "]", cosines);
  if (sines.shape(0) != s.positions || sines.shape(1) != pairs)
    refuse("sines", shape_text(cosines) + " as cosines", sines);
}

std::vector<Brought> brought(const Shapes& s, const int32_t* lengths) {
  const long long most = std::min<long long>(s.positions, 1LL * s.width * KV_POSITIONS);
  std::vector<Brought> parts(s.sequences);
  for (int i = 0; i < s.sequences; ++i) {
    const long long length = lengths[i];
    if (length == 0) continue;
    if (length < s.new_tokens || length > most)
      throw std::invalid_argument(
          "attend: lengths[" + std::to_string(i) + "] must be 0 or in " +
          std::to_string(s.new_tokens) + ".." + std::to_string(most) + " (the page table holds " +
          std::to_string(1LL * s.width * KV_POSITIONS) + " positions, the tables of RoPE " +
          std::to_string(s.positions) + "), got " + std::to_string(length));
    parts[i] = {length - s.new_tokens, length};
  }
  return parts;
}

// All that the kernels read beside the caller's arrays.
struct Work {
  std::vector<int32_t> seq_starts, context_starts, positions, kv_blocks;
  std::vector<AttentionItem> items;
  std::vector<float> q;
  long long multiplications = 0;

  Work(const Kernels& kernels, const Shapes& s, const std::vector<Brought>& parts,
       const int32_t* table)
      : positions(s.tokens, -1), kv_blocks(s.tokens), q(size_t(s.tokens) * s.heads * s.head_dim) {
    const int rows = s.new_tokens * (s.heads / s.kv_heads);
    for (int i = 0; i < s.sequences; ++i) {
      const int first = i * s.new_tokens, begin = static_cast<int>(parts[i].begin);
      seq_starts.push_back(first);
      context_starts.push_back(begin);
      if (parts[i].end == 0) continue;
      for (int t = 0; t < s.new_tokens; ++t) {
        positions[first + t] = begin + t;
        kv_blocks[first + t] = table[size_t(i) * s.width + (begin + t) / KV_POSITIONS];
      }
      const int splits = static_cast<int>((parts[i].end + SPLIT_POSITIONS - 1) / SPLIT_POSITIONS);
      for (int head = 0; head < s.kv_heads; ++head)
        for (int row = 0; row < rows; row += kernels.attention_rows)
          items.push_back(
              {i, head, row, std::min(row + kernels.attention_rows, rows), 0, splits, false});
      multiplications += 2LL * s.new_tokens * s.heads * s.head_dim * parts[i].end;
    }
  }
};

}  // namespace

py::array_t<float> attend(const std::string& variant, const py::object& qkv_object,
                          const py::array& pool_array, const py::object& table_object,
                          const py::object& lengths_object, const py::object& cosines_object,
                          const py::object& sines_object, int heads, bool interleaved,
                          int threads) {
  const Kernels& kernels = runnable_kernels(variant);
  const auto qkv = typed_array<float>(qkv_object, "attend: qkv", 2);
  if (pool_array.dtype().char_() != 'e')
    throw std::invalid_argument("attend: pool must be float16, got " +
                                py::str(pool_array.dtype()).cast<std::string>());
  auto pool = typed_array<uint16_t>(pool_array.attr("view")("uint16"), "attend: pool", 4);
  const auto table = typed_array<int32_t>(table_object, "attend: page_table", 2);
  const auto lengths = typed_array<int32_t>(lengths_object, "attend: lengths", 1);
  const auto cosines = typed_array<float>(cosines_object, "attend: cosines", 2);
  const auto sines = typed_array<float>(sines_object, "attend: sines", 2);
  Shapes s = {};
  s.tokens = static_cast<int>(qkv.shape(0));
  s.sequences = static_cast<int>(lengths.shape(0));
  s.new_tokens = s.sequences ? s.tokens / s.sequences : 0;
  s.heads = heads;
  s.kv_heads = static_cast<int>(pool.shape(1));
  s.head_dim = static_cast<int>(pool.shape(3) / KV_POSITIONS);
  s.pages = static_cast<int>(pool.shape(0));
  s.positions = static_cast<int>(cosines.shape(0));
  s.width = static_cast<int>(table.shape(1));
  check_shapes(s, qkv, pool, cosines, sines);
  if (table.shape(0) != s.sequences)
    refuse("page_table", "[" + std::to_string(s.sequences) + ", pages of a sequence]", table);
  if (threads < 1 || threads > 1024)
    throw std::invalid_argument("attend: threads must be in 1..1024, got " +
                                std::to_string(threads));
  const std::vector<Brought> parts = brought(s, lengths.data());
  check_pages("attend", "page_table", table.data(), s.width, parts, s.pages);
  uint16_t* const base = pool.mutable_data();  // throws where the pool is read-only

  py::array_t<float> out({s.tokens, heads * s.head_dim});
  float* const to = out.mutable_data();
  std::fill_n(to, out.size(), 0.0f);
  py::gil_scoped_release release;
  Work work(kernels, s, parts, table.data());
  const KvLayer kv{base, size_t(s.kv_heads) * 2 * KV_POSITIONS * s.head_dim, s.kv_heads,
                   s.head_dim};
  const RopeArgs rope{qkv.data(),
                      cosines.data(),
                      sines.data(),
                      interleaved,
                      heads,
                      1.0f / std::sqrt(static_cast<float>(s.head_dim)),
                      work.q.data(),
                      kv,
                      work.positions.data(),
                      work.kv_blocks.data()};
  AttentionArgs attention = {};
  attention.q = work.q.data();
  attention.out = to;
  attention.kv = kv;
  attention.heads = heads;
  attention.seq_starts = work.seq_starts.data();
  attention.context_starts = work.context_starts.data();
  attention.block_tables = table.data();
  attention.table_width = s.width;
  attention.items = work.items.data();
  attention.item_count = static_cast<int>(work.items.size());
  const long long useful = std::max(work.multiplications / MULTIPLICATIONS_A_THREAD, 1LL);
  Team team(static_cast<int>(std::min<long long>(threads, useful)));
  team.reset(2);
  run_on_pool(team.threads(), [&](int thread) {
    int phase = 0;
    team.phase(&phase, thread, s.tokens, 1,
               [&](int begin, int end) { kernels.rope_append(rope, begin, end); });
    team.phase(&phase, thread, static_cast<int>(work.items.size()), 1,
               [&](int begin, int end) { kernels.attention(attention, begin, end); });
  });
  return out;
}

}  // namespace servewright
