#include <algorithm>

#include "runtime/kv_tier.h"
#include "runtime/nodes_top_keys.h"

namespace strata {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Into how many equal parts the heads of a KV head are divided, so that `attend` may hold one.
int64_t shares(int64_t heads, int64_t kv_heads) {
  const int64_t group = heads / kv_heads;
  int64_t parts = ceil_div(group, kQueryTile);
  while (group % parts != 0) ++parts;
  return parts;
}

// Query rows that are attended for together, as many as `attend` may hold.
int64_t query_tile(int64_t heads, int64_t kv_heads) {
  return std::max<int64_t>(1, kQueryTile / (heads / (kv_heads * shares(heads, kv_heads))));
}

// With as many tiles of heads there is enough to share out.
constexpr int64_t kTilesPerThread = 8;

}  // namespace

const AttendKernels& attend_kernels(const Context& c, const AttentionSpec& s) {
  const StateStore::Kept& kept = c.state->layer(s.layer).kept;
  return c.step_kernels->attention(kept.types, kept.kv);
}

AttentionArgs attention_arguments(const Context& c, const AttentionSpec& s, const Span& span) {
  const StateStore::Layer& layer = c.state->layer(s.layer);
  AttentionArgs a{};
  a.kv = layer.data;
  a.block_stride = c.state->group_of(layer).block_stride;
  a.head_bytes = layer.head_bytes;
  a.q = c.f32(s.q, span.row);
  a.q_stride = s.q.width;
  a.out = c.f32(s.out, span.row);
  a.out_stride = s.out.width;
  a.table = span.tables[layer.group];
  a.heads = s.heads;
  a.shares = shares(s.heads, s.kv_heads);
  a.kv_heads = s.kv_heads * a.shares;
  a.shape = layer.kept.kv;
  a.past = span.past;
  a.window = s.window;
  a.beginning = s.beginning;
  if (s.q_beginning) a.q_beginning = c.f32(*s.q_beginning, span.row);
  a.chunked = s.chunked;
  a.scale = s.scale;
  a.softcap = s.softcap;
  a.seen = s.causal ? 0 : span.past + span.rows;
  a.slopes = s.slopes.empty() ? nullptr : s.slopes.data();
  a.sinks = s.sinks.empty() ? nullptr : s.sinks.data();
  const KvTypes types = layer.kept.types;
  a.value_at = kv_key_bytes(types.k, a.shape.k_dim);
  a.keys = &c.step_kernels->of(types.k);
  a.values = &c.step_kernels->of(types.v);
  a.k_rotation = kv_rotation(types.k, a.shape.k_dim);
  a.v_rotation = a.shape.v_in_k ? 1 : kv_rotation(types.v, a.shape.v_dim);
  return a;
}

namespace {

class StoreNode final : public Node {
 public:
  explicit StoreNode(AttentionSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    const int64_t rows = c.step->tokens_count;
    rows_ = std::max<int64_t>(1, rows / (4 * c.threads));
    return ceil_div(rows, rows_);
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t row0 = index * rows_;
    const int64_t row1 = std::min(row0 + rows_, c.step->tokens_count);
    for (const Span& span : c.step->spans) {
      const int64_t begin = std::max(row0, span.row), end = std::min(row1, span.row + span.rows);
      for (int64_t r = begin; r < end; ++r) put(c, span, r, span.past + r - span.row);
    }
    for (const Inherited& i : c.step->inherited) {
      const Span& span = c.step->spans[i.span];
      const int64_t begin = std::max(row0, i.row0), end = std::min(row1, i.row1);
      for (int64_t r = begin; r < end; ++r) put(c, span, r, i.position + r - i.row0);
    }
  }

 private:
  // Writes a row into a span's block, unless that has left the window.
  void put(const Context& c, const Span& span, int64_t row, int64_t position) const {
    const StateStore::Layer& layer = c.state->layer(s_.layer);
    const int32_t number = span.tables[layer.group][position / kKvBlock];
    if (number < 0) return;
    uint8_t* block = c.state->part(layer, number);
    const float* k = c.f32(*s_.k, row);
    const float* v = s_.v ? c.f32(*s_.v, row) : nullptr;
    const KvTypes types = layer.kept.types;
    const KvShape& shape = layer.kept.kv;
    const int64_t slot = position % kKvBlock, value_at = kv_key_bytes(types.k, shape.k_dim);
    for (int64_t h = 0; h < s_.kv_heads; ++h, block += layer.head_bytes) {
      c.step_kernels->of(types.k).store_key(k + h * s_.k_dim, shape.k_dim, slot, block);
      if (v == nullptr) continue;
      c.step_kernels->of(types.v).store_value(v + h * s_.v_dim, shape.v_dim, slot,
                                              block + value_at);
    }
  }

  AttentionSpec s_;
  int64_t rows_ = 1;
};

// The splits that the rows of a span see, in the order in which they are merged.
struct Seen {
  int64_t first, count;
  bool apart;   // split 0 comes before `first`, for its beginning
  int64_t at(int64_t place) const { return apart ? (place == 0 ? 0 : first + place - 1) : first + place; }
};

Seen seen_splits(const AttentionArgs& a, const Span& span) {
  constexpr int64_t kSplit = kKvBlock * kSplitBlocks;
  const int64_t first = a.seen > 0 ? 0 : first_key(a, span.past) / kSplit;
  const bool apart = a.beginning > 0 && first > 0;
  return {first, ceil_div(span.past + span.rows, kSplit) - first + apart, apart};
}

float* partials_of(const Cut& cut, const AttentionSpec& s, const Span& span) {
  return cut.partials + span.row * s.heads * partial_floats(s.v_dim);
}

// The bounds of the keys of blocks that the step fills.
class BoundNode final : public Node {
 public:
  explicit BoundNode(AttentionSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    const int64_t group = c.state->layer(s_.layer).group;
    const auto& spans = c.step->spans;
    blocks_.clear();
    for (size_t n = 0; n < spans.size(); ++n) {
      int64_t first = spans[n].past;
      for (const Inherited& i : c.step->inherited)
        if (i.span == n) first = std::min(first, i.position);
      for (int64_t b = first / kKvBlock; (b + 1) * kKvBlock <= spans[n].past + spans[n].rows; ++b)
        blocks_.push_back(spans[n].tables[group][b]);
    }
    std::sort(blocks_.begin(), blocks_.end());
    blocks_.erase(std::unique(blocks_.begin(), blocks_.end()), blocks_.end());
    return static_cast<int64_t>(blocks_.size()) * s_.kv_heads;
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    const StateStore::Layer& layer = c.state->layer(s_.layer);
    const int64_t block = blocks_[static_cast<size_t>(index / s_.kv_heads)];
    const int64_t head = index % s_.kv_heads;
    float* keys = c.arena->scratch(thread);
    c.step_kernels->of(layer.kept.types.k)
        .unpack_keys(c.state->part(layer, block) + head * layer.head_bytes, s_.k_dim, keys);
    c.step_kernels->bound_keys(keys, s_.k_dim, c.state->bounds(layer, block, head));
  }

 private:
  AttentionSpec s_;
  std::vector<int32_t> blocks_;
};

// Which blocks each row sees: the first, its own and the one before it, and of the others so many as
// may weigh most. All of these are full by the time that a row comes, so that what it sees depends on
// its position, its query and its keys alone.
class ChooseNode final : public Node {
 public:
  ChooseNode(AttentionSpec spec, std::shared_ptr<Cut> cut)
      : s_(std::move(spec)), cut_(std::move(cut)) {}

  int64_t begin(const Context& c) override {
    int64_t blocks = 1;
    for (const Span& span : c.step->spans)
      blocks = std::max(blocks, ceil_div(span.past + span.rows, kKvBlock));
    const int64_t rows = c.step->tokens_count;
    cut_->chosen_words = ceil_div(blocks, 64);
    room_ = ceil_div(blocks, 16) * 16;
    // Of each thread: of a block its weight, one head's score, and its number.
    uint8_t* const memory = c.arena->choice(
        static_cast<size_t>(8 * rows * cut_->chosen_words + 12 * room_ * c.threads));
    chosen_ = reinterpret_cast<uint64_t*>(memory);
    cut_->chosen = chosen_;
    work_ = memory + 8 * rows * cut_->chosen_words;
    return rows;
  }

  void chunk(const Context& c, int64_t row, int thread) override {
    uint64_t* const bits = chosen_ + row * cut_->chosen_words;
    std::fill(bits, bits + cut_->chosen_words, uint64_t{0});
    for (const Span& span : c.step->spans) {
      if (row < span.row || row >= span.row + span.rows) continue;
      const int64_t own = (span.past + row - span.row) / kKvBlock;
      const int64_t always = std::min<int64_t>(own + 1, kAlways);
      const int64_t first = 1, end = std::max(first, own - 1);
      const auto see = [&](int64_t b) { bits[b / 64] |= uint64_t{1} << (b % 64); };
      see(0);
      see(own);
      if (own > 0) see(own - 1);
      if (end - first <= s_.read - always) {
        for (int64_t b = first; b < end; ++b) see(b);
        return;
      }
      float* const weights = reinterpret_cast<float*>(work_ + 12 * room_ * thread);
      float* const each = weights + room_;
      auto* const order = reinterpret_cast<int32_t*>(each + room_);
      const AttentionArgs a = attention_arguments(c, s_, span);
      const KeyBounds bounds = c.state->bounds(c.state->layer(s_.layer));
      c.step_kernels->weigh_blocks(a, row - span.row, bounds, first, end, c.arena->scratch(thread),
                                   each, weights);
      const int64_t count = end - first, wanted = s_.read - always;
      for (int64_t i = 0; i < count; ++i) {
        order[i] = static_cast<int32_t>(i);
        if (!(weights[i] >= 0.0f)) weights[i] = 0.0f;   // no number: in no order
      }
      std::nth_element(order, order + wanted, order + count, [&](int32_t x, int32_t y) {
        return weights[x] != weights[y] ? weights[x] > weights[y] : x > y;
      });
      for (int64_t i = 0; i < wanted; ++i) see(first + order[i]);
      return;
    }
  }

 private:
  static constexpr int64_t kAlways = 3;
  AttentionSpec s_;
  std::shared_ptr<Cut> cut_;
  uint64_t* chosen_ = nullptr;
  uint8_t* work_ = nullptr;
  int64_t room_ = 0;
};

// Attention over blocks of which some are read meanwhile: in turns, each over what is there.
class AttendTurns final : public Turns {
 public:
  AttendTurns(int64_t layer, int call, std::shared_ptr<Cut> cut)
      : layer_(layer), call_(call), cut_(std::move(cut)) {}

  void begin(const Context& c) override {
    const bool kept = c.state->tier() != nullptr &&
                      c.state->layer(layer_).group == c.state->tier_group();
    tier_ = kept ? c.state->tier() : nullptr;
    next_ = 0;
    done_ = false;
    if (tier_ != nullptr) tier_->attend(call_, *c.step, cut_->chosen, cut_->chosen_words);
  }

  bool next(const Check& check) override {
    if (tier_ == nullptr) return !std::exchange(done_, true);
    if (std::exchange(holds_, false)) tier_->release();
    items_.clear();
    const auto& all = tier_->items();
    while (next_ < all.size()) {
      const KvTier::Item& item = all[next_];
      // Those of a span go one after the other.
      if (!items_.empty() && items_.back()->span == item.span) break;
      if (!item.cold.empty()) {
        tier_->acquire(item, check);
        holds_ = true;
      }
      items_.push_back(&item);
      ++next_;
      if (holds_) break;
    }
    done_ = items_.empty();
    return !done_;
  }

  void end() override {
    if (tier_ == nullptr) return;
    holds_ = false;
    if (!done_) tier_->drop();
  }

  // What the turn goes over; null where all is in memory.
  const std::vector<const KvTier::Item*>* items() const { return tier_ == nullptr ? nullptr : &items_; }
  const int32_t* table(size_t span) const { return tier_->table(span); }

 private:
  const int64_t layer_;
  const int call_;
  const std::shared_ptr<Cut> cut_;
  KvTier* tier_ = nullptr;
  std::vector<const KvTier::Item*> items_;
  size_t next_ = 0;
  bool holds_ = false, done_ = false;
};

class AttendNode final : public Node {
 public:
  AttendNode(AttentionSpec spec, std::shared_ptr<Cut> cut, std::shared_ptr<AttendTurns> turns)
      : s_(std::move(spec)), cut_(std::move(cut)), turns_(std::move(turns)) {}

  int64_t begin(const Context& c) override {
    tile_ = query_tile(s_.heads, s_.kv_heads);
    parts_ = s_.kv_heads * shares(s_.heads, s_.kv_heads);
    cut_->in_turns = turns_ && turns_->items() != nullptr;
    if (cut_->in_turns) {
      cut_->split = true;
      cut_->splits = 1;
      cut_->partials = c.arena->partials(
          static_cast<size_t>(c.step->tokens_count * s_.heads * partial_floats(s_.v_dim)));
      int64_t chunks = 0;
      for (const KvTier::Item* item : *turns_->items()) {
        chunks += ceil_div(c.step->spans[item->span].rows, tile_) * parts_;
      }
      return chunks;
    }
    int64_t tiles = 0, most_rows = 0;
    cut_->splits = 0;
    for (const Span& span : c.step->spans) {
      tiles += ceil_div(span.rows, tile_);
      cut_->splits = std::max(cut_->splits, seen_splits(attention_arguments(c, s_, span), span).count);
      most_rows = std::max(most_rows, span.rows);
    }
    // Splitting pays when sequences are long and there are too few tiles to share out.
    cut_->split = cut_->splits > 1 && most_rows <= tile_ &&
                  tiles * parts_ < kTilesPerThread * c.threads;
    if (cut_->split) {
      cut_->partial_stride = most_rows * s_.heads * cut_->splits * partial_floats(s_.v_dim);
      cut_->partials = c.arena->partials(static_cast<size_t>(cut_->partial_stride) *
                                         c.step->spans.size());
      return static_cast<int64_t>(c.step->spans.size()) * parts_ * cut_->splits;
    }
    return tiles * parts_;
  }

  void chunk(const Context& c, int64_t index, int thread) override {
    float* scratch = c.arena->scratch(thread);
    const int64_t kv_head = index % parts_;
    if (cut_->in_turns) {
      int64_t tile = index / parts_;
      for (const KvTier::Item* item : *turns_->items()) {
        const Span& span = c.step->spans[item->span];
        const int64_t tiles = ceil_div(span.rows, tile_);
        if (tile >= tiles) {
          tile -= tiles;
          continue;
        }
        AttentionArgs a = chosen(c, span);
        a.table = turns_->table(item->span);
        a.block_stride = KvTier::kUnit;
        const int64_t row0 = (tiles - 1 - tile) * tile_;
        attend_kernels(c, s_).attend_on(a, kv_head, row0, std::min(row0 + tile_, span.rows), item->split0,
                             item->split1, item->first, partials_of(*cut_, s_, span), scratch);
        return;
      }
      return;
    }
    if (cut_->split) {
      const int64_t place = index / parts_ % cut_->splits;
      const int64_t which = index / (parts_ * cut_->splits);
      const Span& span = c.step->spans[static_cast<size_t>(which)];
      float* partials = cut_->partials + which * cut_->partial_stride;
      const AttentionArgs a = chosen(c, span);
      attend_kernels(c, s_).attend_split(a, kv_head, 0, span.rows, seen_splits(a, span).at(place), place,
                                  cut_->splits, partials, scratch);
      return;
    }
    // Late tiles see the most keys: first, so that the tail of the phase is short.
    int64_t tile = index / parts_;
    for (const Span& span : c.step->spans) {
      const int64_t tiles = ceil_div(span.rows, tile_);
      if (tile < tiles) {
        const int64_t row0 = (tiles - 1 - tile) * tile_;
        attend_kernels(c, s_).attend(chosen(c, span), kv_head, row0, std::min(row0 + tile_, span.rows),
                              scratch);
        return;
      }
      tile -= tiles;
    }
  }

 private:
  AttentionArgs chosen(const Context& c, const Span& span) const {
    AttentionArgs a = attention_arguments(c, s_, span);
    if (cut_->chosen == nullptr) return a;
    a.chosen = cut_->chosen + span.row * cut_->chosen_words;
    a.chosen_words = cut_->chosen_words;
    if (cut_->masks == nullptr) return a;
    a.masks = cut_->masks + span.row * cut_->mask_words;
    a.mask_words = cut_->mask_words;
    return a;
  }

  AttentionSpec s_;
  std::shared_ptr<Cut> cut_;
  std::shared_ptr<AttendTurns> turns_;
  int64_t tile_ = 1, parts_ = 1;   // rows; parts of heads, each of one KV head
};

// Merges split results, and makes the int8 form that the next product reads.
class MergeNode final : public Node {
 public:
  MergeNode(AttentionSpec spec, std::shared_ptr<Cut> cut)
      : s_(std::move(spec)), cut_(std::move(cut)) {}

  int64_t begin(const Context& c) override {
    if (!cut_->split && s_.out.q8 == Value::kNone) return 0;
    return c.step->tokens_count;
  }

  void chunk(const Context& c, int64_t row, int thread) override {
    if (cut_->split) {
      for (size_t i = 0; i < c.step->spans.size(); ++i) {
        const Span& span = c.step->spans[i];
        if (row < span.row || row >= span.row + span.rows) continue;
        const AttentionArgs a = attention_arguments(c, s_, span);
        const float* partials =
            cut_->in_turns ? partials_of(*cut_, s_, span)
                           : cut_->partials + static_cast<int64_t>(i) * cut_->partial_stride;
        for (int64_t h = 0; h < s_.heads; ++h) {
          c.step_kernels->merge_splits(a, row - span.row, h, cut_->splits, partials,
                                       c.arena->scratch(thread));
        }
      }
    }
    if (s_.out.q8 != Value::kNone) {
      c.quantize(s_.out, row, c.f32(s_.out, row), 0, ceil_div(s_.out.width, kActBlock));
    }
  }

 private:
  AttentionSpec s_;
  std::shared_ptr<Cut> cut_;
};

}  // namespace

int64_t partials_bytes(int64_t heads, int64_t kv_heads, int64_t v_dim, int threads,
                       int64_t sequences, int64_t positions) {
  const int64_t splits = ceil_div(positions, kKvBlock * kSplitBlocks);
  if (splits <= 1) return 0;
  const int64_t parts = kv_heads * shares(heads, kv_heads);
  const int64_t tiles = std::max<int64_t>(1, ceil_div(kTilesPerThread * threads, parts) - 1);
  const int64_t floats = std::min(sequences, tiles) * query_tile(heads, kv_heads) * heads *
                         splits * partial_floats(v_dim);
  return static_cast<int64_t>(Arena::partials_room(static_cast<size_t>(floats)));
}

std::unique_ptr<Node> make_store(AttentionSpec spec) {
  return std::make_unique<StoreNode>(std::move(spec));
}

void add_attention(NodeList& list, AttentionSpec spec, std::optional<int> call) {
  auto cut = std::make_shared<Cut>();
  std::shared_ptr<AttendTurns> turns;
  if (call) turns = std::make_shared<AttendTurns>(spec.layer, *call, cut);
  if (spec.k) list.add(std::make_unique<StoreNode>(spec));
  if (spec.read > 0) {
    if (spec.k) list.add(std::make_unique<BoundNode>(spec));
    list.add(std::make_unique<ChooseNode>(spec, cut));
  }
  if (spec.chosen) list.add(make_mask(*spec.chosen, cut));
  list.add(std::make_unique<AttendNode>(spec, cut, turns));
  if (turns) list.in_turns(1, std::move(turns));
  list.add(std::make_unique<MergeNode>(spec, cut));
}

}  // namespace strata
