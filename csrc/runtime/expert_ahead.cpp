// What a cache of experts reads before a router has chosen it, and what it is taken back to.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "runtime/expert_cache.h"
#include "runtime/expert_slot.h"

namespace strata {
namespace {

// Of what is read ahead so much has to be needed; what a visit told counts so much less after the
// next one; and where it was less, one visit in so many tries again.
constexpr double kWorth = 0.5, kRemembered = 0.995;
constexpr int64_t kTriedAgain = 17;
// More than all uses that a policy remembers can be worth.
constexpr double kMostWorth = 1e9;

}  // namespace

void ExpertCache::begin_with(const std::vector<double>& scores) {
  if (layer_ >= 0 || held_ > 0 || scores.size() != slot_of_.size()) {
    throw std::invalid_argument("experts: they cannot begin so");
  }
  std::vector<int64_t> hot;
  for (size_t id = 0; id < scores.size(); ++id) {
    if (!std::isfinite(scores[id]) || scores[id] < 0 || scores[id] > kMostWorth) {
      throw std::invalid_argument("experts: a use is worth no such number");
    }
    if (scores[id] > 0) hot.push_back(static_cast<int64_t>(id));
  }
  std::stable_sort(hot.begin(), hot.end(), [&](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  if (static_cast<int64_t>(hot.size()) > capacity()) hot.resize(static_cast<size_t>(capacity()));
  policy_->begin_with(scores);
  for (const int64_t id : hot) {
    const auto after = std::upper_bound(layers_.begin(), layers_.end(), id,
                                        [](int64_t i, const Layer& l) { return i < l.first; });
    const auto layer = static_cast<int>(after - layers_.begin()) - 1;
    const int64_t first = layers_[static_cast<size_t>(layer)].first;
    keep(read_into_empty(layer, static_cast<int32_t>(id - first), Urgency::idle));
    ++counts_.begun_with;
  }
}

bool ExpertCache::foresees() {
  if (ahead_ == 0) return false;
  if (right_ < kWorth * asked_ && ++passed_ < kTriedAgain) return false;
  passed_ = 0;
  return true;
}

void ExpertCache::foresee(int layer, const std::vector<int32_t>& likely) {
  forget_foreseen();
  reclaim();
  foreseen_layer_ = layer;
  const Layer& at = layers_[static_cast<size_t>(layer)];
  for (const int32_t expert : likely) {
    // Some free slots are for those that will be here.
    if (static_cast<int64_t>(free_.size()) <= capacity() - held_) return;
    if (slot_of_[static_cast<size_t>(at.first + expert)] >= 0) continue;
    const int64_t found = read_into_empty(layer, expert, Urgency::idle);
    slots_[static_cast<size_t>(found)]->set_ahead(true);
    ahead_slots_.push_back(found);
    ++counts_.foreseen;
  }
}

// A visit begins: of those that were foreseen some are needed.
void ExpertCache::settle_foreseen() {
  if (ahead_slots_.empty()) return;
  const auto right = std::count_if(ahead_slots_.begin(), ahead_slots_.end(), [&](int64_t i) {
    return place_of_[static_cast<size_t>(slots_[static_cast<size_t>(i)]->expert())] >= 0;
  });
  counts_.right += right;
  asked_ = asked_ * kRemembered + static_cast<double>(ahead_slots_.size());
  right_ = right_ * kRemembered + static_cast<double>(right);
}

// What was foreseen and not needed goes, as soon as nothing is read into its slot any more.
void ExpertCache::forget_foreseen() {
  foreseen_layer_ = -1;
  for (const int64_t i : ahead_slots_) {
    Slot& slot = *slots_[static_cast<size_t>(i)];
    const size_t begun = readers_->queue.abandon(&slot);
    for (size_t read = 0; read < begun; ++read) counts_.wasted += slot.bytes(read);
    leaving_.push_back(i);
  }
  ahead_slots_.clear();
}

void ExpertCache::reclaim() {
  std::erase_if(leaving_, [&](int64_t i) {
    Slot& slot = *slots_[static_cast<size_t>(i)];
    if (!readers_->queue.quiet(slot)) return false;
    slot.clear();
    free_.push_back(i);
    return true;
  });
}

// The slot of one that gives way to one that the next layer will need: of neither layer, but of this one
// once the visit is over. -1 where there is none.
int64_t ExpertCache::find_other(bool over) const {
  std::vector<int64_t> experts, slots;
  for (int64_t i = 0; i < this->slots(); ++i) {
    const Slot& slot = *slots_[static_cast<size_t>(i)];
    if (slot.id() < 0 || slot.ahead() || slot.layer() == layer_ + 1) continue;
    if (slot.layer() == layer_ && !over) continue;
    experts.push_back(slot.id());
    slots.push_back(i);
  }
  return experts.empty() ? -1 : slots[policy_->choose(experts)];
}

// Has those of the next layer read that are missing, as far as there are slots for them.
void ExpertCache::read_next(bool over) {
  sure_ids_.reserve(static_cast<size_t>(next_end_));
  for (; next_ < next_end_ && static_cast<int64_t>(sure_ids_.size()) < sure_slots_; ++next_) {
    const int64_t id = layers_[static_cast<size_t>(layer_) + 1].first + next_;
    if (slot_of_[static_cast<size_t>(id)] >= 0) continue;
    if (held_ == capacity()) {
      const int64_t victim = find_other(over);
      if (victim < 0) return;
      forget(victim);
    }
    const int64_t found = read_into_empty(layer_ + 1, next_, Urgency::soon);
    slots_[static_cast<size_t>(found)]->set_sure(true);
    keep(found);
    sure_layer_ = layer_ + 1;
    sure_ids_.push_back(id);
  }
}

// A visit begins: of those that were sure some are needed, and the others are here as any.
void ExpertCache::settle_sure() {
  int64_t right = 0;
  for (const int64_t id : sure_ids_) {
    const int32_t at = slot_of_[static_cast<size_t>(id)];
    if (at < 0) continue;
    Slot& slot = *slots_[static_cast<size_t>(at)];
    if (sure_layer_ == layer_ && place_of_[static_cast<size_t>(slot.expert())] >= 0) {
      ++right;
      continue;
    }
    slot.set_sure(false);
    const ExpertMatrices& matrices = matrices_[static_cast<size_t>(slot.layer())];
    for (const ExpertMatrixPtr& m : matrices) counts_.wasted += m->file_bytes(slot.expert());
  }
  if (sure_layer_ == layer_) sure_next_.came(static_cast<int64_t>(sure_ids_.size()), right);
  sure_layer_ = -1;
  sure_ids_.clear();
}

// One that is here but could not be read when nobody needed it is missing: it is read again.
void ExpertCache::forget_failed(int64_t id) {
  const int32_t at = slot_of_[static_cast<size_t>(id)];
  if (at < 0) return;
  const Slot& slot = *slots_[static_cast<size_t>(at)];
  if (slot.ready() || slot.sure() || !slot.fresh()) return;
  try {
    readers_->queue.complete(slot);
  } catch (const ReadError&) {
    forget(at);
  }
}

// Nothing is read ahead any more, nor what a cache began with.
void ExpertCache::settle() {
  for (int64_t i = 0; i < slots(); ++i) {
    Slot& slot = *slots_[static_cast<size_t>(i)];
    if (slot.id() < 0 || slot.ahead() || slot.ready()) continue;
    bool read = false;
    try {
      read = readers_->queue.complete(slot);
    } catch (const ReadError&) {
    }
    if (read) {
      slot.set_ready();
    } else {
      forget(i);
    }
  }
  forget_foreseen();
  for (const int64_t i : leaving_) readers_->queue.withdraw(slots_[static_cast<size_t>(i)].get());
  reclaim();
}

}  // namespace strata
