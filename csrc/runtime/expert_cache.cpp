#include "runtime/expert_cache.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/expert_slot.h"
#include "runtime/fail_points.h"

namespace strata {
namespace {

constexpr int64_t kAlign = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

std::vector<int32_t> layers_of(const std::vector<ExpertMatrices>& layers) {
  std::vector<int32_t> out;
  for (size_t i = 0; i < layers.size(); ++i) {
    out.insert(out.end(), static_cast<size_t>(layers[i][0]->experts), static_cast<int32_t>(i));
  }
  return out;
}

}  // namespace

int64_t ExpertMatrix::file_bytes(int64_t expert) const {
  const int64_t first = first_panel(expert);
  return place(expert).file_bytes(first, first + panels(n));
}

int64_t ExpertCache::slot_bytes(const std::vector<ExpertMatrices>& layers) {
  int64_t most = 0;
  for (const ExpertMatrices& layer : layers) {
    int64_t bytes = 0;
    for (const ExpertMatrixPtr& m : layer) bytes += aligned(m->packed());
    most = std::max(most, bytes);
  }
  return most;
}

int64_t ExpertCache::scratch_bytes(const std::vector<ExpertMatrices>& layers,
                                   int64_t request_bytes) {
  int64_t most = 0;
  for (const ExpertMatrices& layer : layers) {
    for (const ExpertMatrixPtr& m : layer) {
      const WeightPlace& place = m->place(0);
      const int64_t at_once = std::min(place.panels_at_once(request_bytes), panels(m->n));
      most = std::max(most, place.staging(at_once));
    }
  }
  return most;
}

ExpertCache::ExpertCache(std::vector<ExpertMatrices> layers, int64_t slots, int64_t request_bytes,
                         std::shared_ptr<Readers> readers, int64_t ahead, double decay,
                         int64_t sure)
    : matrices_(std::move(layers)),
      request_bytes_(request_bytes),
      each_(slot_bytes(matrices_)),
      policy_(std::make_unique<DecayingFrequency>(layers_of(matrices_), decay)) {
  read_by(std::move(readers));
  int64_t count = 0, most = 0;
  for (const ExpertMatrices& matrices : matrices_) {
    Layer layer{count, {}, {}};
    int64_t at = 0;
    for (size_t part = 0; part < matrices.size(); ++part) {
      const ExpertMatrix& m = *matrices[part];
      layer.offsets.push_back(at);
      at += aligned(m.packed());
      const int64_t step = std::min(m.place(0).panels_at_once(request_bytes_), panels(m.n));
      for (int64_t p = 0; p < panels(m.n); p += step) {
        layer.reads.push_back({part, p, std::min(p + step, panels(m.n))});
      }
    }
    count += matrices[0]->experts;
    most = std::max(most, matrices[0]->experts);
    layers_.push_back(std::move(layer));
  }
  slot_of_.assign(static_cast<size_t>(count), -1);
  place_of_.assign(static_cast<size_t>(most), -1);
  if (ahead < 0 || sure < 0 || ahead + sure >= slots) {
    throw std::invalid_argument("experts: slots for none");
  }
  add_slots(slots);
  keep_ahead(ahead);
  sure_slots_ = sure;
}

ExpertCache::~ExpertCache() {
  end();
  settle();
}

void ExpertCache::read_by(std::shared_ptr<Readers> readers) {
  if (scratch_bytes(matrices_, request_bytes_) > readers->scratch_each) {
    throw std::invalid_argument("experts: readers with too little scratch");
  }
  if (readers_) settle();
  readers_ = std::move(readers);
}

void ExpertCache::resize(int64_t slots, int64_t ahead, double decay, int64_t sure) {
  if (layer_ >= 0 || ahead < 0 || sure < 0 || ahead + sure >= slots) {
    throw std::invalid_argument("experts: they cannot be resized so");
  }
  settle();
  const int64_t count = this->slots();
  if (slots > count) add_slots(slots - count);
  keep_ahead(ahead);
  remove_slots(std::max<int64_t>(0, count - slots));
  policy_->set_decay(decay);
  sure_slots_ = sure;
}

void ExpertCache::add_slots(int64_t count) {
  about_to_allocate(static_cast<size_t>(count) * sizeof(Slot));
  std::vector<std::unique_ptr<Slot>> added;
  memory_.reserve(memory_.size() + 1);
  slots_.reserve(slots_.size() + static_cast<size_t>(count));
  auto bytes = std::make_unique<AlignedBytes>(static_cast<size_t>(count * each_), false);
  for (int64_t i = 0; i < count; ++i) {
    added.push_back(std::make_unique<Slot>(*this, bytes->data() + i * each_));
  }
  memory_.push_back({std::move(bytes), count});
  for (auto& slot : added) slots_.push_back(std::move(slot));
  count_free();
}

void ExpertCache::keep_ahead(int64_t slots) {
  ahead_slots_.reserve(static_cast<size_t>(slots));
  leaving_.reserve(static_cast<size_t>(slots));
  ahead_ = slots;
}

void ExpertCache::count_free() {
  free_.clear();
  free_.reserve(slots_.size());
  for (int64_t i = slots(); i-- > 0;) {
    if (slots_[static_cast<size_t>(i)]->id() < 0) free_.push_back(i);
  }
  held_ = slots() - static_cast<int64_t>(free_.size());
}

void ExpertCache::remove_slots(int64_t count) {
  const int64_t left = slots() - count;
  std::vector<int64_t> held;
  for (const auto& slot : slots_) {
    if (slot->id() >= 0) held.push_back(slot->id());
  }
  while (static_cast<int64_t>(held.size()) > left - ahead_) {
    const size_t goes = policy_->choose(held);
    forget(slot_of_[static_cast<size_t>(held[goes])]);
    held.erase(held.begin() + static_cast<std::ptrdiff_t>(goes));
  }
  size_t empty = 0;
  for (auto i = static_cast<size_t>(left); i < slots_.size(); ++i) {
    Slot& from = *slots_[i];
    if (from.id() < 0) continue;
    while (slots_[empty]->id() >= 0) ++empty;
    slot_of_[static_cast<size_t>(from.id())] = static_cast<int32_t>(empty);
    slots_[empty]->take_over(from, each_);
  }
  slots_.resize(static_cast<size_t>(left));
  count_free();
  if (count == 0) return;
  for (; count >= memory_.back().slots; memory_.pop_back()) count -= memory_.back().slots;
  Piece& last = memory_.back();
  last.slots -= count;
  last.bytes->shrink(static_cast<size_t>(last.slots * each_));
}

void ExpertCache::begin(int layer, const std::vector<int32_t>& needed, const int32_t* chosen,
                        int64_t rows, int64_t top_k) {
  if (foreseen_layer_ != layer) forget_foreseen();
  layer_ = layer;
  next_ = next_end_ = 0;
  needed_ = needed;
  taken_.assign(needed_.size(), 0);
  admitted_ = finished_ = 0;
  read_from_.clear();
  for (size_t i = 0; i < needed_.size(); ++i) {
    place_of_[static_cast<size_t>(needed_[i])] = static_cast<int32_t>(i);
  }
  settle_foreseen();
  settle_sure();
  const auto next = static_cast<size_t>(layer) + 1;
  if (next < layers_.size()) {
    const int64_t experts = matrices_[next][0]->experts;
    if (sure_slots_ > 0 && sure_next_.ask(experts, top_k, rows)) next_end_ = static_cast<int32_t>(experts);
  }
  uses_.assign(needed_.size(), 0);
  for (int64_t i = 0; i < rows * top_k; ++i) {
    ++uses_[static_cast<size_t>(place_of_[static_cast<size_t>(chosen[i])])];
  }
  policy_->visit(layer, rows);
  const int64_t first = layers_[static_cast<size_t>(layer)].first;
  for (size_t i = 0; i < needed_.size(); ++i) policy_->use(first + needed_[i], uses_[i]);
  if (!recording_) return;
  visits_.push_back({layer, rows, needed_, uses_});
  routes_.push_back({layer, rows, std::vector<int32_t>(chosen, chosen + rows * top_k)});
}

// The slot of one that gives way to a needed expert. Neither those give way that are needed later nor
// those last admitted, while there is any other.
int64_t ExpertCache::find_victim(size_t place) const {
  const auto count = static_cast<int64_t>(slots_.size());
  const int64_t ahead = std::min(kAhead, capacity() - 1);
  std::vector<int64_t> experts, slots;
  int64_t last = -1, last_place = -1;
  for (int64_t i = 0; i < count; ++i) {
    const Slot& slot = *slots_[static_cast<size_t>(i)];
    if (slot.id() < 0 || slot.ahead()) continue;
    const int64_t at =
        slot.layer() == layer_ ? place_of_[static_cast<size_t>(slot.expert())] : -1;
    if (at > last_place) {
      last_place = at;
      last = i;
    }
    if (at >= 0 && at >= static_cast<int64_t>(place) - ahead) continue;
    experts.push_back(slot.id());
    slots.push_back(i);
  }
  return experts.empty() ? last : slots[policy_->choose(experts)];
}

// The slot in which a missing expert will be: it is read, or has been since it was foreseen.
int64_t ExpertCache::bring(int32_t expert, int64_t id) {
  for (size_t i = 0; i < ahead_slots_.size(); ++i) {
    const int64_t found = ahead_slots_[i];
    Slot& slot = *slots_[static_cast<size_t>(found)];
    if (slot.id() != id) continue;
    const size_t begun = readers_->queue.hasten(&slot);
    slot.set_ahead(false);
    ahead_slots_.erase(ahead_slots_.begin() + static_cast<std::ptrdiff_t>(i));
    counts_.begun += begun > 0;
    for (size_t read = 0; read < begun; ++read) counts_.ahead += slot.bytes(read);
    return found;
  }
  return read_into_empty(layer_, expert, Urgency::now);
}

// Has an expert read into a slot in which nothing is, and says into which.
int64_t ExpertCache::read_into_empty(int layer, int32_t expert, Urgency urgency) {
  const int64_t found = free_.back();
  Slot& slot = *slots_[static_cast<size_t>(found)];
  slot.hold(layer, expert, layers_[static_cast<size_t>(layer)].first + expert);
  try {
    readers_->queue.submit(&slot, urgency);
  } catch (...) {
    slot.clear();
    throw;
  }
  free_.pop_back();
  return found;
}

// What is in a slot is here from now on.
void ExpertCache::keep(int64_t slot) {
  ++held_;
  slot_of_[static_cast<size_t>(slots_[static_cast<size_t>(slot)]->id())] = static_cast<int32_t>(slot);
}

// Has a needed expert read unless it is here. False while the one that is to give way is in use.
bool ExpertCache::admit(size_t place) {
  const Layer& layer = layers_[static_cast<size_t>(layer_)];
  const int32_t expert = needed_[place];
  const int64_t id = layer.first + expert;
  int64_t bytes = 0;
  const ExpertMatrices& matrices = matrices_[static_cast<size_t>(layer_)];
  for (const ExpertMatrixPtr& m : matrices) bytes += m->file_bytes(expert);
  forget_failed(id);
  if (slot_of_[static_cast<size_t>(id)] >= 0) {
    Slot& slot = *slots_[static_cast<size_t>(slot_of_[static_cast<size_t>(id)])];
    if (slot.sure()) {
      slot.set_sure(false);
      const size_t begun = readers_->queue.hasten(&slot);
      counts_.begun += begun > 0;
      for (size_t read = 0; read < begun; ++read) counts_.ahead += slot.bytes(read);
      ++counts_.misses;
      counts_.read += bytes;
    } else {
      ++counts_.hits;
    }
    if (slot.fresh()) {
      if (!slot.ready()) readers_->queue.hasten(&slot);
      read_from(matrices, expert);
      slot.set_needed();
    }
  } else {
    if (held_ == capacity()) {
      const int64_t victim = find_victim(place);
      const Slot& goes = *slots_[static_cast<size_t>(victim)];
      if (goes.layer() == layer_) {
        const int32_t at = place_of_[static_cast<size_t>(goes.expert())];
        if (at >= static_cast<int32_t>(finished_) && at < static_cast<int32_t>(place)) return false;
      }
      forget(victim);
    }
    const int64_t found = bring(expert, id);
    keep(found);
    slots_[static_cast<size_t>(found)]->set_needed();
    read_from(matrices, expert);
    ++counts_.misses;
    counts_.read += bytes;
  }
  counts_.needed += bytes;
  return true;
}

// Files are to be looked at after the visit.
void ExpertCache::read_from(const ExpertMatrices& matrices, int32_t expert) {
  for (const ExpertMatrixPtr& m : matrices) {
    const WeightFile* file = m->place(expert).file.get();
    if (std::find(read_from_.begin(), read_from_.end(), file) == read_from_.end()) {
      read_from_.push_back(file);
    }
  }
}

// Of one that is here.
void ExpertCache::forget(int64_t slot) {
  Slot& goes = *slots_[static_cast<size_t>(slot)];
  if (!goes.ready()) readers_->queue.withdraw(&goes);
  slot_of_[static_cast<size_t>(goes.id())] = -1;
  goes.clear();
  free_.push_back(slot);
  --held_;
}

void ExpertCache::take(std::vector<int32_t>& ready, const Check& check) {
  while (admitted_ < needed_.size() && admit(admitted_)) ++admitted_;
  if (admitted_ == needed_.size()) read_next(false);
  const int64_t first = layers_[static_cast<size_t>(layer_)].first;
  const auto slot = [&](size_t place) -> Slot& {
    return *slots_[static_cast<size_t>(slot_of_[static_cast<size_t>(first + needed_[place])])];
  };
  const auto collect = [&] {
    for (size_t i = 0; i < admitted_; ++i) {
      if (taken_[i]) continue;
      Slot& s = slot(i);
      if (!s.ready()) {
        if (!readers_->queue.complete(s)) continue;
        s.set_ready();
      }
      taken_[i] = 1;
      ready.push_back(static_cast<int32_t>(i));
    }
  };
  collect();
  if (!ready.empty()) return;
  for (size_t i = 0; i < admitted_; ++i) {
    if (taken_[i]) continue;
    readers_->queue.wait(slot(i), check);
    break;
  }
  collect();
  if (ready.empty()) throw std::logic_error("experts: none can come");
}

const uint8_t* ExpertCache::weight(int32_t place, size_t part) const {
  const Layer& layer = layers_[static_cast<size_t>(layer_)];
  const int64_t id = layer.first + needed_[static_cast<size_t>(place)];
  const auto slot = static_cast<size_t>(slot_of_[static_cast<size_t>(id)]);
  return slots_[slot]->memory() + layer.offsets[part];
}

void ExpertCache::verify() {
  try {
    for (const WeightFile* file : read_from_) file->check_unchanged();
  } catch (...) {
    // Who knows what was read.
    for (int64_t i = 0; i < slots(); ++i) {
      const Slot& slot = *slots_[static_cast<size_t>(i)];
      if (slot.id() >= 0 && !slot.ahead()) forget(i);
    }
    throw;
  }
}

void ExpertCache::end() {
  if (layer_ < 0) return;
  const int64_t first = layers_[static_cast<size_t>(layer_)].first;
  for (const int32_t e : needed_) {
    place_of_[static_cast<size_t>(e)] = -1;
    const int32_t at = slot_of_[static_cast<size_t>(first + e)];
    if (at < 0) continue;
    Slot& slot = *slots_[static_cast<size_t>(at)];
    if (!slot.ready()) forget(at);
  }
  forget_foreseen();
  needed_.clear();
  layer_ = -1;
}

void ExpertCache::record(bool on) {
  recording_ = on;
  visits_.clear();
  routes_.clear();
}

}  // namespace strata
