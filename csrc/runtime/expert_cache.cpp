#include "runtime/expert_cache.h"

#include <algorithm>
#include <stdexcept>

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

// Memory for an expert, and the reads that bring it there.
class ExpertCache::Slot final : public ReadBatch {
 public:
  Slot(ExpertCache& cache, uint8_t* memory) : cache_(cache), memory_(memory) {}

  void hold(int layer, int32_t expert, int64_t id) {
    layer_ = layer;
    expert_ = expert;
    id_ = id;
    ready_ = false;
  }
  void clear() { id_ = -1; }
  int64_t id() const { return id_; }   // -1: nothing is here
  int layer() const { return layer_; }
  int32_t expert() const { return expert_; }
  bool ready() const { return ready_; }
  void set_ready() { ready_ = true; }
  const uint8_t* memory() const { return memory_; }

  size_t reads() const override { return layout().reads.size(); }
  int64_t bytes(size_t read) const override {
    const Read& r = layout().reads[read];
    const ExpertMatrix& m = matrix(r);
    const int64_t first = m.first_panel(expert_);
    return m.place(expert_).file_bytes(first + r.panel0, first + r.panel1);
  }
  void read(size_t read, uint8_t* scratch) override {
    const Read& r = layout().reads[read];
    const ExpertMatrix& m = matrix(r);
    const WeightPlace& place = m.place(expert_);
    const int64_t first = m.first_panel(expert_);
    place.read_panels(first + r.panel0, first + r.panel1,
                      memory_ + layout().offsets[r.part] + r.panel0 * place.panel_bytes(), scratch,
                      cache_.readers_->counters);
  }

 private:
  const Layer& layout() const { return cache_.layers_[static_cast<size_t>(layer_)]; }
  const ExpertMatrix& matrix(const Read& r) const {
    return *cache_.matrices_[static_cast<size_t>(layer_)][r.part];
  }

  ExpertCache& cache_;
  uint8_t* const memory_;
  int layer_ = 0;
  int32_t expert_ = 0;
  int64_t id_ = -1;
  bool ready_ = false;
};

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
                         std::shared_ptr<Readers> readers)
    : matrices_(std::move(layers)),
      request_bytes_(request_bytes),
      readers_(std::move(readers)),
      memory_(static_cast<size_t>(slot_bytes(matrices_) * slots), false),
      policy_(std::make_unique<DecayingFrequency>(layers_of(matrices_))) {
  if (scratch_bytes(matrices_, request_bytes_) > readers_->scratch_each) {
    throw std::invalid_argument("experts: readers with too little scratch");
  }
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
  about_to_allocate(static_cast<size_t>(slots) * sizeof(Slot));
  const int64_t each = slot_bytes(matrices_);
  for (int64_t i = 0; i < slots; ++i) {
    slots_.push_back(std::make_unique<Slot>(*this, memory_.data() + i * each));
  }
  slot_of_.assign(static_cast<size_t>(count), -1);
  place_of_.assign(static_cast<size_t>(most), -1);
}

ExpertCache::~ExpertCache() { end(); }

void ExpertCache::begin(int layer, const std::vector<int32_t>& needed) {
  layer_ = layer;
  needed_ = needed;
  taken_.assign(needed_.size(), 0);
  admitted_ = finished_ = 0;
  read_from_.clear();
  for (size_t i = 0; i < needed_.size(); ++i) {
    place_of_[static_cast<size_t>(needed_[i])] = static_cast<int32_t>(i);
  }
  policy_->visit(layer);
  if (recording_) visits_.emplace_back(layer, needed_);
}

// The slot for a needed expert that is not here: an empty one, or that of one that gives way. Neither
// those give way that are needed later nor those last admitted, while there is any other.
int64_t ExpertCache::find_slot(size_t place) const {
  const auto count = static_cast<int64_t>(slots_.size());
  const int64_t ahead = std::min(kAhead, count - 1);
  std::vector<int64_t> experts, slots;
  int64_t last = -1, last_place = -1;
  for (int64_t i = 0; i < count; ++i) {
    const Slot& slot = *slots_[static_cast<size_t>(i)];
    if (slot.id() < 0) return i;
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

// Has a needed expert read unless it is here. False while the one that is to give way is in use.
bool ExpertCache::admit(size_t place) {
  const Layer& layer = layers_[static_cast<size_t>(layer_)];
  const int32_t expert = needed_[place];
  const int64_t id = layer.first + expert;
  int64_t bytes = 0;
  const ExpertMatrices& matrices = matrices_[static_cast<size_t>(layer_)];
  for (const ExpertMatrixPtr& m : matrices) bytes += m->file_bytes(expert);
  if (slot_of_[static_cast<size_t>(id)] >= 0) {
    ++counts_.hits;
  } else {
    const int64_t found = find_slot(place);
    Slot& slot = *slots_[static_cast<size_t>(found)];
    if (slot.id() >= 0 && slot.layer() == layer_) {
      const int32_t at = place_of_[static_cast<size_t>(slot.expert())];
      if (at >= static_cast<int32_t>(finished_) && at < static_cast<int32_t>(place)) return false;
    }
    forget(slot);
    slot.hold(layer_, expert, id);
    try {
      readers_->queue.submit(&slot, true);
    } catch (...) {
      slot.clear();
      throw;
    }
    slot_of_[static_cast<size_t>(id)] = static_cast<int32_t>(found);
    for (const ExpertMatrixPtr& m : matrices) {
      const WeightFile* file = m->place(expert).file.get();
      if (std::find(read_from_.begin(), read_from_.end(), file) == read_from_.end()) {
        read_from_.push_back(file);
      }
    }
    ++counts_.misses;
    counts_.read += bytes;
  }
  counts_.needed += bytes;
  policy_->use(id);
  return true;
}

void ExpertCache::forget(Slot& slot) {
  if (slot.id() >= 0) slot_of_[static_cast<size_t>(slot.id())] = -1;
  slot.clear();
}

void ExpertCache::take(std::vector<int32_t>& ready, const Check& check) {
  while (admitted_ < needed_.size() && admit(admitted_)) ++admitted_;
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
    for (const auto& slot : slots_) {
      if (slot->ready()) forget(*slot);
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
    if (slot.ready()) continue;
    readers_->queue.withdraw(&slot);
    forget(slot);
  }
  needed_.clear();
  layer_ = -1;
}

void ExpertCache::record(bool on) {
  recording_ = on;
  visits_.clear();
}

}  // namespace strata
