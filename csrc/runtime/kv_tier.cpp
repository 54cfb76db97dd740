#include "runtime/kv_tier.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "runtime/executor.h"
#include "runtime/fail_points.h"

namespace strata {
namespace {

constexpr int64_t kRequest = int64_t{1} << 20;   // bytes of the largest read, where blocks are small
constexpr int64_t kPlace = int64_t{2} << 20;     // bytes of a place, where splits are small
constexpr int64_t kRing = int64_t{12} << 20;     // bytes of all places, where six are no more
constexpr int64_t kFewest = 6;                   // places

std::vector<int64_t> offsets_of(const std::vector<KvTier::Layer>& layers, int64_t blocks) {
  std::vector<int64_t> out;
  int64_t at = 0;
  for (const KvTier::Layer& layer : layers) {
    out.push_back(at);
    at += blocks * KvTier::piece(layer.bytes);
  }
  out.push_back(at);
  return out;
}

int64_t largest(const std::vector<KvTier::Layer>& layers) {
  int64_t most = 0;
  for (const KvTier::Layer& layer : layers) most = std::max(most, KvTier::piece(layer.bytes));
  return most;
}

}  // namespace

// Memory for the cold blocks of an item, and the reads that bring them there for one layer.
class KvTier::Place final : public ReadBatch {
 public:
  Place(KvTier& tier, uint8_t* memory) : tier_(tier), memory_(memory) {}
  void hold(size_t call, size_t item) {
    call_ = call;
    item_ = item;
    layer_ = static_cast<size_t>(tier_.calls_[call]);
  }
  size_t call() const { return call_; }
  size_t item() const { return item_; }
  size_t layer() const { return layer_; }
  int64_t piece() const { return KvTier::piece(tier_.layers_[layer_].bytes); }
  uint8_t* at(int64_t number) const { return memory_ + number * piece(); }

  size_t reads() const override { return tier_.items_[item_].cold.size(); }
  int64_t bytes(size_t read) const override {
    return tier_.items_[item_].cold[read].count * piece();
  }
  void read(size_t read, uint8_t*) override {
    const Run& run = tier_.items_[item_].cold[read];
    tier_.file_.read(tier_.offset(layer_, run.block), bytes(read), at(run.at), tier_.counts_.read);
  }

 private:
  KvTier& tier_;
  uint8_t* const memory_;
  size_t call_ = 0, item_ = 0, layer_ = 0;
};

// Parts of whole blocks that come into their slots by way of the ring, as many as that has room for.
class KvTier::Fetch final : public ReadBatch {
 public:
  Fetch(KvTier& tier, const std::vector<std::pair<int64_t, int64_t>>& blocks)
      : tier_(tier), blocks_(blocks), most_(largest(tier.layers_)) {}
  // Goes on; false when all are there.
  bool next() {
    first_ += count_;
    const auto places = static_cast<int64_t>(tier_.places_.size());
    const auto room = static_cast<size_t>(places * tier_.place_bytes_ / most_);
    count_ = std::min(room, blocks_.size() * tier_.layers_.size() - first_);
    return count_ > 0;
  }
  size_t reads() const override { return count_; }
  int64_t bytes(size_t read) const override { return piece(tier_.layers_[layer(read)].bytes); }
  void read(size_t read, uint8_t*) override {
    const auto& [block, slot] = blocks_[(first_ + read) / tier_.layers_.size()];
    uint8_t* const ring = tier_.places_[0]->at(0);
    tier_.read_piece(layer(read), block, tier_.memory(tier_.layers_[layer(read)], slot),
                     ring + static_cast<int64_t>(read) * most_);
  }

 private:
  size_t layer(size_t read) const { return (first_ + read) % tier_.layers_.size(); }
  KvTier& tier_;
  const std::vector<std::pair<int64_t, int64_t>>& blocks_;   // block, slot
  const int64_t most_;
  size_t first_ = 0, count_ = 0;
};

int64_t KvTier::place_bytes(const std::vector<int64_t>& layer_bytes) {
  int64_t most = 0;
  for (int64_t bytes : layer_bytes) most = std::max(most, piece(bytes));
  const int64_t split = most * kSplitBlocks;
  return split * std::max<int64_t>(1, kPlace / split);
}

int KvTier::places(int64_t place_bytes) {
  return static_cast<int>(std::max(kFewest, kRing / place_bytes));
}

KvTier::KvTier(std::vector<Layer> layers, int64_t slot_bytes, int64_t blocks, int64_t slots,
               uint8_t* ring, int64_t place_bytes, const std::string& directory, bool chosen)
    : layers_(std::move(layers)),
      slot_bytes_(slot_bytes),
      place_bytes_(place_bytes),
      chosen_(chosen),
      offsets_(offsets_of(layers_, blocks)),
      file_(directory, offsets_.back()),
      staging_(static_cast<size_t>(largest(layers_)), false, KvFile::kAlign),
      slot_of_(static_cast<size_t>(blocks), -1),
      on_disk_(static_cast<size_t>(blocks), 0),
      slots_(static_cast<size_t>(slots)) {
  for (int i = 0; i < places(place_bytes); ++i) {
    places_.push_back(std::make_unique<Place>(*this, ring + i * place_bytes));
    free_.push_back(places_.back().get());
  }
}

KvTier::~KvTier() { drop(); }

int64_t KvTier::offset(size_t layer, int64_t block) const {
  return offsets_[layer] + block * piece(layers_[layer].bytes);
}

void KvTier::write_piece(size_t layer, int64_t block, const uint8_t* from) {
  const auto bytes = static_cast<size_t>(layers_[layer].bytes);
  const int64_t all = piece(layers_[layer].bytes);
  std::memcpy(staging_.data(), from, bytes);
  std::memset(staging_.data() + bytes, 0, static_cast<size_t>(all) - bytes);
  file_.write(offset(layer, block), all, staging_.data());
  counts_.written += all;
}

void KvTier::read_piece(size_t layer, int64_t block, uint8_t* to, uint8_t* aligned) {
  const int64_t bytes = layers_[layer].bytes;
  const bool at_once = bytes == piece(bytes) && reinterpret_cast<uintptr_t>(to) % KvFile::kAlign == 0;
  file_.read(offset(layer, block), piece(bytes), at_once ? to : aligned, counts_.read);
  if (!at_once) std::memcpy(to, aligned, static_cast<size_t>(bytes));
}

void KvTier::evict(Slot& slot) {
  if (slot.block < 0) return;
  if (slot.dirty) {
    const int64_t number = &slot - slots_.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
      write_piece(i, slot.block, memory(layers_[i], number));
    }
    on_disk_[static_cast<size_t>(slot.block)] = 1;
  }
  slot_of_[static_cast<size_t>(slot.block)] = -1;
  slot = Slot{};
}

// Slots for the blocks of `written`, of which those not `whole` have something to keep; and for
// others that the step sees, as far as there are slots that it does not use.
void KvTier::give_slots(const std::vector<int64_t>& written, const std::vector<bool>& whole) {
  std::vector<std::pair<int64_t, bool>> wanted;   // whether it is to be fetched
  for (size_t i = 0; i < written.size(); ++i) {
    const int64_t at = slot(written[i]);
    if (at >= 0) {
      slots_[static_cast<size_t>(at)].pinned = true;
    } else if (std::none_of(wanted.begin(), wanted.end(),
                            [&](const auto& w) { return w.first == written[i]; })) {
      wanted.emplace_back(written[i], !whole[i] && on_disk_[static_cast<size_t>(written[i])]);
    }
  }
  const size_t must = wanted.size();
  const auto spare = std::count_if(slots_.begin(), slots_.end(),
                                   [&](const Slot& s) { return s.block < 0 || s.used < now_; });
  if (spare > static_cast<int64_t>(must)) {
    std::vector<bool> seen(slot_of_.size(), false);
    for (const auto& w : wanted) seen[static_cast<size_t>(w.first)] = true;
    for (const int32_t block : table_) {
      if (static_cast<int64_t>(wanted.size()) >= spare) break;
      if (block < 0 || slot(block) >= 0 || seen[static_cast<size_t>(block)]) continue;
      seen[static_cast<size_t>(block)] = true;
      if (on_disk_[static_cast<size_t>(block)]) wanted.emplace_back(block, true);
    }
  }
  if (wanted.empty()) return;
  std::vector<size_t> order(slots_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t i) { return slots_[i].pinned; });
  // Empty ones, then those not seen for long, then those that came last.
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Slot &x = slots_[a], &y = slots_[b];
    const bool ex = x.block < 0, ey = y.block < 0;
    if (ex != ey) return ex;
    return x.used != y.used ? x.used < y.used : x.arrived > y.arrived;
  });
  if (order.size() < must) {
    throw ReadError("KV: a step writes " + std::to_string(written.size()) + " blocks, and memory has " +
                    std::to_string(slots_.size()) + ": give more memory");
  }
  std::vector<std::pair<int64_t, int64_t>> fetched;
  for (size_t i = 0; i < wanted.size() && i < order.size(); ++i) {
    Slot& to = slots_[order[i]];
    if (i >= must && to.block >= 0 && to.used == now_) break;
    evict(to);
    if (wanted[i].second) fetched.emplace_back(wanted[i].first, order[i]);
  }
  if (!fetched.empty()) {
    Fetch fetch(*this, fetched);
    while (fetch.next()) {
      readers_->queue.submit(&fetch, Urgency::now);
      try {
        readers_->queue.wait(fetch, [] {});
      } catch (...) {
        readers_->queue.withdraw(&fetch);
        throw;
      }
    }
  }
  for (size_t i = 0; i < wanted.size() && i < order.size(); ++i) {
    Slot& to = slots_[order[i]];
    if (to.block >= 0) break;
    to.block = wanted[i].first;
    to.arrived = to.used = now_;
    slot_of_[static_cast<size_t>(to.block)] = static_cast<int32_t>(order[i]);
  }
}

void KvTier::begin(const StepView& step, int64_t group, std::vector<int> calls,
                   std::shared_ptr<Readers> readers) {
  drop();
  std::lock_guard<std::mutex> hold(lock_);
  readers_ = std::move(readers);
  calls_ = std::move(calls);
  ++now_;
  table_.clear();
  table_of_.clear();
  std::vector<int64_t> written;
  std::vector<bool> whole;
  const auto writes = [&](const int32_t* table, int64_t position, int64_t rows) {
    for (int64_t b = position / kKvBlock; b <= (position + rows - 1) / kKvBlock; ++b) {
      if (table[b] < 0) continue;
      written.push_back(table[b]);
      whole.push_back(b * kKvBlock >= position);
    }
  };
  for (const Span& span : step.spans) {
    const int32_t* table = span.tables[group];
    table_of_.push_back(table_.size());
    const int64_t count = (span.past + span.rows + kKvBlock - 1) / kKvBlock;
    table_.insert(table_.end(), table, table + count);
    writes(table, span.past, span.rows);
  }
  for (const Inherited& i : step.inherited) {
    writes(step.spans[i.span].tables[group], i.position, i.row1 - i.row0);
  }
  for (Slot& s : slots_) s.pinned = false;
  for (const int32_t block : table_) {
    if (slot(block) >= 0) slots_[static_cast<size_t>(slot(block))].used = now_;
  }
  give_slots(written, whole);
  for (const int64_t block : written) {
    Slot& s = slots_[static_cast<size_t>(slot(block))];
    s.dirty = s.pinned = true;
  }
  blocks_ = table_;
  items_.clear();
  cold_items_.clear();
  if (chosen_) return;   // each layer says what it sees
  make_items(step, nullptr, 0);
  next_call_ = next_cold_ = 0;
  read_ahead();
}

void KvTier::make_items(const StepView& step, const uint64_t* chosen, int64_t words) {
  items_.clear();
  cold_items_.clear();
  const int64_t most_piece = largest(layers_);
  const int64_t room = place_bytes_ / most_piece, together = std::max<int64_t>(1, kRequest / most_piece);
  for (size_t n = 0; n < step.spans.size(); ++n) {
    const Span& span = step.spans[n];
    int32_t* table = table_.data() + table_of_[n];
    const int32_t* blocks = blocks_.data() + table_of_[n];
    const int64_t count = (span.past + span.rows + kKvBlock - 1) / kKvBlock;
    const auto seen = [&](int64_t b) {
      if (chosen == nullptr) return true;
      for (int64_t r = span.row; r < span.row + span.rows; ++r)
        if ((chosen[r * words + b / 64] >> (b % 64) & 1) != 0) return true;
      return false;
    };
    const auto away = [&](int64_t b) { return slot(blocks[b]) < 0 && seen(b); };
    Item item{n, 0, 0, true, {}};
    int64_t held = 0;
    const auto close = [&] {
      if (item.split1 == item.split0) return;
      if (!item.cold.empty()) cold_items_.push_back(items_.size());
      items_.push_back(std::move(item));
      item = Item{n, items_.back().split1, items_.back().split1, false, {}};
      held = 0;
    };
    for (int64_t split = 0; split * kSplitBlocks < count; ++split) {
      const int64_t end = std::min(count, (split + 1) * kSplitBlocks);
      int64_t cold = 0;
      for (int64_t b = split * kSplitBlocks; b < end; ++b) cold += away(b);
      // What is there need not wait for what is read.
      if (held + cold > room || (cold > 0 && held == 0)) close();
      for (int64_t b = split * kSplitBlocks; b < end; ++b) {
        const int64_t block = blocks[b], at = slot(block);
        table[b] = at < 0 ? 0 : static_cast<int32_t>(at * (slot_bytes_ / kUnit));
        if (!away(b)) continue;
        Run* last = item.cold.empty() ? nullptr : &item.cold.back();
        if (last != nullptr && last->index + last->count == b &&
            last->block + last->count == block && last->count < together) {
          ++last->count;
        } else {
          item.cold.push_back({b, 1, block, held});
        }
        ++held;
      }
      item.split1 = split + 1;
    }
    close();
  }
}

void KvTier::read_ahead() {
  while (!free_.empty() && !cold_items_.empty()) {
    if (next_cold_ == cold_items_.size()) {
      if (chosen_) return;
      ++next_call_;
      next_cold_ = 0;
    }
    while (next_call_ < calls_.size() && calls_[next_call_] < 0) ++next_call_;
    if (next_call_ >= calls_.size()) return;
    Place* const place = free_.back();
    place->hold(next_call_, cold_items_[next_cold_]);
    readers_->queue.submit(place);
    free_.pop_back();
    pending_.push_back(place);
    ++next_cold_;
  }
}

void KvTier::attend(int call, const StepView& step, const uint64_t* chosen, int64_t words) {
  if (chosen_) {
    drop();
    make_items(step, chosen, words);
  }
  if (cold_items_.empty()) return;
  const auto wanted = static_cast<size_t>(call);
  if (wanted >= calls_.size() || calls_[wanted] < 0) {
    throw std::logic_error("KV: a layer attends that was not announced");
  }
  if (!pending_.empty() && pending_.front()->call() == wanted &&
      pending_.front()->item() == cold_items_[0]) {
    return;
  }
  drop();
  next_call_ = wanted;
  next_cold_ = 0;
  read_ahead();
}

void KvTier::acquire(const Item& item, const Check& check) {
  Place* const place = pending_.empty() ? nullptr : pending_.front();
  if (place == nullptr || &items_[place->item()] != &item) {
    throw std::logic_error("KV: items are taken in their order");
  }
  readers_->queue.wait(*place, check);
  pending_.pop_front();
  held_ = place;
  int32_t* table = table_.data() + table_of_[item.span];
  const uint8_t* data = layers_[place->layer()].data;
  for (const Run& run : item.cold) {
    for (int64_t i = 0; i < run.count; ++i) {
      table[run.index + i] = static_cast<int32_t>((place->at(run.at + i) - data) / kUnit);
    }
  }
}

void KvTier::release() {
  free_.push_back(held_);
  held_ = nullptr;
  read_ahead();
}

void KvTier::drop() {
  if (held_ != nullptr) free_.push_back(held_);
  held_ = nullptr;
  for (Place* place : pending_) {
    readers_->queue.withdraw(place);
    free_.push_back(place);
  }
  pending_.clear();
  next_call_ = calls_.size();
  next_cold_ = 0;
}

void KvTier::copy(int64_t source, int64_t target) {
  std::lock_guard<std::mutex> hold(lock_);
  const int64_t from = slot(source), to = slot(target);
  // A block that nobody wrote has nothing to copy.
  if (from < 0 && !on_disk_[static_cast<size_t>(source)]) return;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto bytes = static_cast<size_t>(layers_[i].bytes);
    const uint8_t* data = staging_.data();
    if (from >= 0) {
      data = memory(layers_[i], from);
    } else {
      file_.read(offset(i, source), piece(layers_[i].bytes), staging_.data(), counts_.read);
    }
    if (to >= 0) {
      std::memcpy(memory(layers_[i], to), data, bytes);
    } else if (from >= 0) {
      write_piece(i, target, data);
    } else {
      file_.write(offset(i, target), piece(layers_[i].bytes), staging_.data());
      counts_.written += piece(layers_[i].bytes);
    }
  }
  if (to >= 0) {
    slots_[static_cast<size_t>(to)].dirty = true;
  } else {
    on_disk_[static_cast<size_t>(target)] = 1;
  }
}

void KvTier::read(int64_t block, uint8_t* out) {
  std::lock_guard<std::mutex> hold(lock_);
  const int64_t from = slot(block);
  for (size_t i = 0; i < layers_.size(); out += layers_[i].bytes, ++i) {
    const auto bytes = static_cast<size_t>(layers_[i].bytes);
    if (from >= 0) {
      std::memcpy(out, memory(layers_[i], from), bytes);
    } else if (on_disk_[static_cast<size_t>(block)]) {
      file_.read(offset(i, block), piece(layers_[i].bytes), staging_.data(), counts_.read);
      std::memcpy(out, staging_.data(), bytes);
    } else {
      std::memset(out, 0, bytes);
    }
  }
}

void KvTier::write(int64_t block, const uint8_t* data) {
  {
    std::lock_guard<std::mutex> hold(lock_);
    const int64_t to = slot(block);
    if (to >= 0) {
      for (const Layer& layer : layers_) {
        std::memcpy(memory(layer, to), data, static_cast<size_t>(layer.bytes));
        data += layer.bytes;
      }
      slots_[static_cast<size_t>(to)].dirty = true;
      return;
    }
  }
  // Several blocks may be written at once: a disk takes one after the other far more slowly.
  for (size_t i = 0; i < layers_.size(); data += layers_[i].bytes, ++i) {
    const int64_t bytes = layers_[i].bytes;
    if (bytes == piece(bytes) && reinterpret_cast<uintptr_t>(data) % KvFile::kAlign == 0) {
      file_.write(offset(i, block), bytes, data);
      counts_.written += bytes;
    } else {
      std::lock_guard<std::mutex> hold(lock_);   // of the staging
      write_piece(i, block, data);
    }
  }
  std::lock_guard<std::mutex> hold(lock_);
  on_disk_[static_cast<size_t>(block)] = 1;
}

}  // namespace strata
