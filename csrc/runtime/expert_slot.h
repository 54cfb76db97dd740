// One slot of a cache of experts.
#pragma once
#include <cstdint>
#include <cstring>

#include "runtime/expert_cache.h"

namespace strata {

// Memory for an expert, and the reads that bring it there.
class ExpertCache::Slot final : public ReadBatch {
 public:
  Slot(ExpertCache& cache, uint8_t* memory) : cache_(cache), memory_(memory) {}

  void hold(int layer, int32_t expert, int64_t id) {
    layer_ = layer;
    expert_ = expert;
    id_ = id;
    ready_ = false;
    ahead_ = false;
    sure_ = false;
    fresh_ = true;
  }
  void clear() {
    id_ = -1;
    ahead_ = false;
  }
  int64_t id() const { return id_; }   // -1: nothing is here
  // Whether it is read ahead, and not one of those that are here.
  bool ahead() const { return ahead_; }
  void set_ahead(bool on) { ahead_ = on; }
  // Whether it is here because its layer is sure to need it, which has not had its turn.
  bool sure() const { return sure_; }
  void set_sure(bool on) { sure_ = on; }
  int layer() const { return layer_; }
  int32_t expert() const { return expert_; }
  bool ready() const { return ready_; }
  void set_ready() { ready_ = true; }
  // Whether nobody needed it yet, and files are still to be looked at.
  bool fresh() const { return fresh_; }
  void set_needed() { fresh_ = false; }
  const uint8_t* memory() const { return memory_; }
  // Has what another slot has, which is empty then.
  void take_over(Slot& from, int64_t bytes) {
    std::memcpy(memory_, from.memory_, static_cast<size_t>(bytes));
    hold(from.layer_, from.expert_, from.id_);
    ready_ = true;
    fresh_ = from.fresh_;
    from.clear();
  }

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
  bool ready_ = false, ahead_ = false, sure_ = false, fresh_ = true;
};

}  // namespace strata
