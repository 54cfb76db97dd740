#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/nodes.h"

namespace strata {

namespace {

// Chunks a thread: enough that a thread which loses its core leaves little behind.
constexpr int64_t kChunksPerThread = 4;
// Columns worth a chunk of their own when there are few rows.
constexpr int64_t kColumnChunk = 512;

int64_t rows_per_chunk(int64_t rows, int threads) {
  return std::max<int64_t>(1, rows / (kChunksPerThread * threads));
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_norm(RowFunction f) {
  return f == RowFunction::rms_norm || f == RowFunction::layer_norm;
}

class RowNode final : public Node {
 public:
  explicit RowNode(RowSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    const int64_t rows = c.rows(s_.out);
    rows_ = rows_per_chunk(rows, c.threads);
    // A norm needs its whole row; anything else may be cut between quantisation blocks.
    const bool cut = !is_norm(s_.function) && rows < c.threads && c.threads > 1;
    columns_ = cut ? kColumnChunk : s_.out.width;
    column_chunks_ = ceil_div(s_.out.width, columns_);
    return ceil_div(rows, rows_) * column_chunks_;
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const int64_t row0 = index / column_chunks_ * rows_;
    const int64_t row1 = std::min(row0 + rows_, c.rows(s_.out));
    const int64_t c0 = index % column_chunks_ * columns_;
    const int64_t c1 = std::min(c0 + columns_, s_.out.width);
    for (int64_t r = row0; r < row1; ++r) apply_row(c, s_, r, c0, c1, c.arena->scratch(thread));
  }

 private:
  RowSpec s_;
  int64_t rows_ = 1, columns_ = 0, column_chunks_ = 1;
};

class EmbedNode final : public Node {
 public:
  EmbedNode(RowTablePtr table, float scale, Value out)
      : table_(std::move(table)), scale_(scale), out_(out) {}

  int64_t begin(const Context& c) override {
    rows_ = rows_per_chunk(c.rows(out_), c.threads);
    return ceil_div(c.rows(out_), rows_);
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t end = std::min((index + 1) * rows_, c.rows(out_));
    for (int64_t r = index * rows_; r < end; ++r) {
      float* out = c.f32(out_, r);
      table_->row(*c.matrix, c.step->tokens[r], out);
      if (scale_ != 1.0f) c.step_kernels->scale(out, scale_, out_.width, out);
    }
  }

 private:
  RowTablePtr table_;
  float scale_;
  Value out_;
  int64_t rows_ = 1;
};

class AddPositionsNode final : public Node {
 public:
  AddPositionsNode(Value x, RowTablePtr table, int64_t offset, Value out)
      : x_(x), table_(std::move(table)), offset_(offset), out_(out) {}

  int64_t begin(const Context& c) override { return c.rows(out_); }

  void chunk(const Context& c, int64_t r, int thread) override {
    float* position = c.arena->scratch(thread);
    table_->row(*c.matrix, c.step->positions[r] + offset_, position);
    c.step_kernels->add(c.f32(x_, r), position, out_.width, c.f32(out_, r));
  }

 private:
  Value x_;
  RowTablePtr table_;
  int64_t offset_;
  Value out_;
};

class SelectNode final : public Node {
 public:
  SelectNode(Value x, Value out) : x_(x), out_(out) {}
  int64_t begin(const Context& c) override { return c.step->logits_count; }
  void chunk(const Context& c, int64_t r, int) override {
    std::memcpy(c.f32(out_, r), c.f32(x_, c.step->logits_indices[r]),
                static_cast<size_t>(out_.width) * sizeof(float));
  }

 private:
  Value x_, out_;
};

class RopeNode final : public Node {
 public:
  explicit RopeNode(RopeSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    s_.table->prepare(c.step->positions, c.step->tokens_count);
    rows_ = rows_per_chunk(c.rows(s_.out), c.threads);
    return ceil_div(c.rows(s_.out), rows_);
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t end = std::min((index + 1) * rows_, c.rows(s_.out));
    for (int64_t r = index * rows_; r < end; ++r) {
      for (int64_t h = 0; h < s_.x.width; h += s_.head_dim) {
        c.step_kernels->rope(c.f32(s_.x, r) + h, s_.table->cos(r), s_.table->sin(r), s_.table->half(),
                             s_.head_dim, s_.interleaved, c.f32(s_.out, r) + h);
      }
    }
  }

 private:
  RopeSpec s_;
  int64_t rows_ = 1;
};

// Chunks are columns of a span. The state is read from one slot and written to another, so that a
// step which is broken off can be taken again.
class ShortConvNode final : public Node {
 public:
  explicit ShortConvNode(ShortConvSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    const auto spans = static_cast<int64_t>(c.step->spans.size());
    const int64_t even = ceil_div(s_.x.width * spans, kChunksPerThread * c.threads);
    columns_ = std::clamp(ceil_div(even, kLine) * kLine, kLine, kColumnChunk);
    column_chunks_ = ceil_div(s_.x.width, columns_);
    return spans * column_chunks_;
  }

  void chunk(const Context& c, int64_t index, int) override {
    const Span& span = c.step->spans[static_cast<size_t>(index / column_chunks_)];
    const int64_t c0 = index % column_chunks_ * columns_;
    const int64_t n = std::min(columns_, s_.x.width - c0);
    const int64_t before = s_.taps - 1;
    const StateStore::Layer& layer = c.state->layer(s_.layer);
    const int32_t* slots = span.tables[layer.group];
    const auto slot = [&](int32_t i) {
      return reinterpret_cast<float*>(layer.data + i * c.state->group_of(layer).block_stride) + c0;
    };
    const float* source = slots[0] < 0 ? nullptr : slot(slots[0]);
    float* target = slot(slots[1]);
    static constexpr float kZeros[kColumnChunk] = {};   // what came before a sequence began
    // Row i of what came before the span and then of the span itself.
    const auto at = [&](int64_t i) -> const float* {
      if (i >= before) return c.f32(s_.x, span.row + i - before) + c0;
      return source == nullptr ? kZeros : source + i * s_.x.width;
    };
    const float* rows[kMostTaps];
    for (int64_t r = 0; r < span.rows; ++r) {
      for (int64_t j = 0; j < s_.taps; ++j) rows[j] = at(r + j);
      c.step_kernels->short_conv(rows, s_.weight.data() + c0,
                                 s_.bias.empty() ? nullptr : s_.bias.data() + c0, s_.x.width,
                                 s_.taps, n, c.f32(s_.out, span.row + r) + c0);
    }
    for (int64_t i = 0; i < before; ++i) {
      std::memcpy(target + i * s_.x.width, at(span.rows + i),
                  static_cast<size_t>(n) * sizeof(float));
    }
  }

 private:
  static constexpr int64_t kLine = 16;   // floats of a cache line
  ShortConvSpec s_;
  int64_t columns_ = 0, column_chunks_ = 1;
};

// Tokens are kept as floats with 1 added, so that a state of zeros has none: exact below 2^24. Every
// row is made from tokens alone, so that chunks depend on nothing but their row. Lookups that wait
// for the disk are chunks of their own, so that threads wait for them side by side.
class NgramsNode final : public Node {
 public:
  explicit NgramsNode(NgramsSpec spec) : s_(std::move(spec)) {
    const auto lookups = static_cast<int64_t>(s_.starts.size());
    together_ = s_.table->in_file() ? 1 : lookups;
    parts_ = lookups / together_;
  }

  int64_t begin(const Context& c) override { return c.rows(s_.out) * parts_; }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t r = index / parts_, first = index % parts_ * together_, last = first + together_;
    const Span* span = c.step->spans.data();
    while (r >= span->row + span->rows) ++span;
    const StateStore::Layer& layer = c.state->layer(s_.layer);
    const int32_t* slots = span->tables[layer.group];
    const auto slot = [&](int32_t i) {
      return reinterpret_cast<float*>(layer.data + i * c.state->group_of(layer).block_stride);
    };
    const auto before = static_cast<int64_t>(s_.multipliers.size()) - 1;
    const float* past = slots[0] < 0 ? nullptr : slot(slots[0]);
    // Of row i of the span, below 0 of what came before it; -1 where nothing did.
    const auto token = [&](int64_t i) -> int64_t {
      if (i >= 0) return c.step->tokens[span->row + i];
      return past == nullptr ? -1 : static_cast<int64_t>(past[before + i]) - 1;
    };
    const int64_t own = r - span->row, width = s_.table->k;
    float* out = c.f32(s_.out, r);
    uint64_t mixed = static_cast<uint64_t>(token(own)) * s_.multipliers[0];
    bool cut = false;
    for (int64_t back = 1; back <= before; ++back) {
      const int64_t seen = cut ? s_.end : token(own - back);
      cut = cut || seen < 0 || seen == s_.end;
      mixed ^= static_cast<uint64_t>(cut ? s_.end : seen) * s_.multipliers[back];
      for (int64_t i = (back - 1) * s_.each; i < back * s_.each; ++i) {
        if (i < first || i >= last) continue;
        const auto row = static_cast<int64_t>(mixed % static_cast<uint64_t>(s_.sizes[i]));
        s_.table->row(*c.matrix, s_.starts[i] + row, out + i * width);
      }
    }
    if (own + 1 < span->rows || first > 0) return;
    float* target = slot(slots[1]);
    for (int64_t i = 0; i < before; ++i)
      target[i] = static_cast<float>(token(span->rows - before + i) + 1);
  }

 private:
  NgramsSpec s_;
  int64_t together_, parts_;   // lookups of a chunk, and chunks of a row
};

}  // namespace

void FileRows::row(const KernelTable& kernels, int64_t row, float* out) const {
  const int64_t bytes = row_bytes();
  AlignedBytes buffer(static_cast<size_t>(WeightFile::span(bytes)), false, WeightFile::kBufferAlign);
  const uint8_t* stored = buffer.data();
  if (!cache_ || !cache_->find(table_, row, bytes, buffer.data())) {
    stored = place_->file->read(place_->offset + row * bytes, bytes, buffer.data(), *counters_);
    if (cache_) cache_->put(table_, row, bytes, stored);
  }
  unpack_stored_row(*place_, kernels, stored, out);
}

void apply_row(const Context& c, const RowSpec& s, int64_t row, int64_t c0, int64_t c1,
               float* scratch) {
  const StepKernels& k = *c.step_kernels;
  const int64_t n = c1 - c0;
  const float* a = c.f32(s.a, row) + c0;
  // Where only the int8 form is kept, the floats live in the thread's scratch.
  float* out = (s.out.f32 == Value::kNone ? scratch : c.f32(s.out, row)) + c0;
  switch (s.function) {
    case RowFunction::copy:
      if (s.out.f32 == Value::kNone) {
        out = const_cast<float*>(a);
      } else if (out != a) {
        std::memcpy(out, a, static_cast<size_t>(n) * sizeof(float));
      }
      break;
    case RowFunction::rms_norm:
    case RowFunction::layer_norm: {
      const float* weight = s.weight.empty() ? nullptr : s.weight.data();
      const float* bias = s.bias.empty() ? nullptr : s.bias.data();
      for (int64_t g = 0; g < n; g += s.group) {
        if (s.function == RowFunction::rms_norm) {
          k.rms_norm(a + g, weight, s.number, s.group, out + g);
        } else {
          k.layer_norm(a + g, weight, bias, s.number, s.group, out + g);
        }
      }
      break;
    }
    case RowFunction::mul: {
      const float* b = s.weight.empty() ? c.f32(s.b, row) : s.weight.data();
      const int64_t given = s.weight.empty() ? s.b.width : static_cast<int64_t>(s.weight.size());
      if (given == s.out.width) {
        k.multiply(a, b + c0, n, out);
        break;
      }
      const int64_t each = s.out.width / given;
      for (int64_t i = c0; i < c1;) {
        const int64_t end = std::min(c1, (i / each + 1) * each);
        k.scale(a + i - c0, b[i / each], end - i, out + i - c0);
        i = end;
      }
      break;
    }
    case RowFunction::shift: k.add(a, s.weight.data() + c0, n, out); break;
    case RowFunction::clamp: k.clamp(a, s.weight[0], s.weight[1], n, out); break;
    case RowFunction::xielu:
      k.xielu(a, s.weight[0], s.weight[1], s.weight[2], s.weight[3], n, out);
      break;
    case RowFunction::position_scale: {
      const double floor = s.weight[0], offset = s.weight[2];
      const double steps = std::floor((c.step->positions[row] + offset) / floor);
      k.scale(a, static_cast<float>(1 + s.weight[1] * std::log1p(steps)), n, out);
      break;
    }
    case RowFunction::glu: k.glu(s.activation, a, c.f32(s.b, row) + c0, n, out); break;
    case RowFunction::activation: k.activate(s.activation, a, n, out); break;
    case RowFunction::add: k.add(a, c.f32(s.b, row) + c0, n, out); break;
    case RowFunction::scale: k.scale(a, s.number, n, out); break;
    case RowFunction::softcap: k.softcap(a, s.number, n, out); break;
  }
  if (s.out.q8 != Value::kNone) {
    c.quantize(s.out, row, out - c0, c0 / kActBlock, ceil_div(c1, kActBlock));
  }
}

std::unique_ptr<Node> make_row(RowSpec spec) { return std::make_unique<RowNode>(std::move(spec)); }

std::unique_ptr<Node> make_embed(RowTablePtr table, float scale, Value out) {
  return std::make_unique<EmbedNode>(std::move(table), scale, out);
}

std::unique_ptr<Node> make_ngrams(NgramsSpec spec) {
  return std::make_unique<NgramsNode>(std::move(spec));
}

std::unique_ptr<Node> make_add_positions(Value x, RowTablePtr table, int64_t offset, Value out) {
  return std::make_unique<AddPositionsNode>(x, std::move(table), offset, out);
}

std::unique_ptr<Node> make_select(Value x, Value out) {
  return std::make_unique<SelectNode>(x, out);
}

std::unique_ptr<Node> make_short_conv(ShortConvSpec spec) {
  return std::make_unique<ShortConvNode>(std::move(spec));
}

std::unique_ptr<Node> make_rope(RopeSpec spec) {
  return std::make_unique<RopeNode>(std::move(spec));
}

}  // namespace strata
