#include "runtime/expert_replay.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "runtime/expert_cache.h"

namespace strata {
namespace {

std::vector<int64_t> firsts_of(const std::vector<int32_t>& experts) {
  std::vector<int64_t> out(1, 0);
  for (const int32_t n : experts) out.push_back(out.back() + n);
  return out;
}

std::vector<int32_t> layers_of(const std::vector<int32_t>& experts) {
  std::vector<int32_t> out;
  for (size_t i = 0; i < experts.size(); ++i) {
    out.insert(out.end(), static_cast<size_t>(experts[i]), static_cast<int32_t>(i));
  }
  return out;
}

// The one goes whose number is the least, of equals the first that is asked about.
class ByNumber : public ExpertPolicy {
 public:
  explicit ByNumber(size_t experts) : numbers_(experts, 0) {}
  void visit(int, int64_t) override {}
  void use(int64_t, int64_t) override {}
  size_t choose(const std::vector<int64_t>& experts) const override {
    size_t found = 0;
    for (size_t i = 1; i < experts.size(); ++i) {
      if (number(experts[i]) < number(experts[found])) found = i;
    }
    return found;
  }

 protected:
  int64_t number(int64_t expert) const { return numbers_[static_cast<size_t>(expert)]; }
  std::vector<int64_t> numbers_;
};

class LeastRecentlyUsed final : public ByNumber {
 public:
  using ByNumber::ByNumber;
  void use(int64_t expert, int64_t) override { numbers_[static_cast<size_t>(expert)] = ++now_; }

 private:
  int64_t now_ = 0;
};

class StaticHot final : public ByNumber {
 public:
  explicit StaticHot(const std::vector<int64_t>& uses) : ByNumber(uses.size()) {
    // Of equals the one with the smallest number.
    const auto count = static_cast<int64_t>(uses.size());
    for (int64_t i = 0; i < count; ++i) {
      numbers_[static_cast<size_t>(i)] = uses[static_cast<size_t>(i)] * count + i;
    }
  }
};

// Numbers are those of the next visits that use them, negative.
class Belady final : public ByNumber {
 public:
  Belady(const Visits& visits, size_t experts) : ByNumber(experts) {
    const std::vector<int64_t> first = firsts_of(visits.experts);
    const auto never = static_cast<int64_t>(visits.all.size());
    std::fill(numbers_.begin(), numbers_.end(), -never);
    // From the end on, and in the order of uses afterwards.
    for (int64_t v = never - 1; v >= 0; --v) {
      const Visit& visit = visits.all[static_cast<size_t>(v)];
      for (auto e = visit.experts.rbegin(); e != visit.experts.rend(); ++e) {
        int64_t& number =
            numbers_[static_cast<size_t>(first[static_cast<size_t>(visit.layer)] + *e)];
        next_.push_back(number);
        number = -v;
      }
    }
    std::reverse(next_.begin(), next_.end());
  }
  void use(int64_t expert, int64_t) override {
    numbers_[static_cast<size_t>(expert)] = next_[used_++];
  }

 private:
  std::vector<int64_t> next_;   // of each use
  size_t used_ = 0;
};

// Those that are used most never give way to others.
class Mixed final : public ExpertPolicy {
 public:
  Mixed(std::vector<int32_t> layers, double decay, const std::vector<int64_t>& uses, int64_t pinned)
      : frequency_(std::move(layers), decay), pinned_(uses.size(), 0) {
    std::vector<size_t> order(uses.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return uses[a] > uses[b]; });
    const auto most = std::min(static_cast<size_t>(pinned), order.size());
    for (size_t i = 0; i < most; ++i) pinned_[order[i]] = 1;
  }
  void visit(int layer, int64_t rows) override { frequency_.visit(layer, rows); }
  void use(int64_t expert, int64_t choices) override { frequency_.use(expert, choices); }
  size_t choose(const std::vector<int64_t>& experts) const override {
    std::vector<int64_t> others;
    std::vector<size_t> places;
    for (size_t i = 0; i < experts.size(); ++i) {
      if (pinned_[static_cast<size_t>(experts[i])]) continue;
      others.push_back(experts[i]);
      places.push_back(i);
    }
    return others.empty() ? frequency_.choose(experts) : places[frequency_.choose(others)];
  }

 private:
  DecayingFrequency frequency_;
  std::vector<uint8_t> pinned_;
};

}  // namespace

void Visits::check() const {
  bool right = !experts.empty();
  for (const int32_t n : experts) right = right && n > 0;
  for (size_t v = 0; right && v < all.size(); ++v) {
    const Visit& visit = all[v];
    right = visit.layer >= 0 && visit.layer < static_cast<int>(experts.size()) &&
            visit.rows >= 0 && visit.uses.size() == visit.experts.size();
    for (size_t i = 0; right && i < visit.experts.size(); ++i) {
      const int32_t e = visit.experts[i];
      right = e >= 0 && e < experts[static_cast<size_t>(visit.layer)] && visit.uses[i] > 0 &&
              (i == 0 || e > visit.experts[i - 1]);
    }
  }
  if (!right) throw std::invalid_argument("visits: numbers do not fit each other");
}

std::unique_ptr<ExpertPolicy> make_policy(const std::string& name, const Visits& visits,
                                          int64_t slots, double decay,
                                          const std::vector<int64_t>& uses) {
  const auto experts = static_cast<size_t>(firsts_of(visits.experts).back());
  if ((name == "static" || name == "mixed") && uses.size() != experts) {
    throw std::invalid_argument("visits: so many experts have no uses");
  }
  if (name == "frequency") {
    return std::make_unique<DecayingFrequency>(layers_of(visits.experts), decay);
  }
  if (name == "recent") return std::make_unique<LeastRecentlyUsed>(experts);
  if (name == "static") return std::make_unique<StaticHot>(uses);
  if (name == "belady") return std::make_unique<Belady>(visits, experts);
  if (name == "mixed") {
    return std::make_unique<Mixed>(layers_of(visits.experts), decay, uses, slots / 2);
  }
  throw std::invalid_argument("visits: there is no policy " + name);
}

Replayed replay(const Visits& visits, int64_t slots, int64_t sure, int64_t counted,
                ExpertPolicy& policy) {
  const std::vector<int64_t> first = firsts_of(visits.experts);
  std::vector<uint8_t> held(static_cast<size_t>(first.back()), 0);
  std::vector<int64_t> holds, place_of(static_cast<size_t>(first.back()), -1), may_go;
  std::vector<size_t> where;
  Replayed done;
  SureNext sure_next;
  std::vector<uint8_t> is_sure(held.size(), 0);   // what is held because the next visit needs it
  std::vector<int64_t> sure_ids;
  int sure_layer = -1;
  for (size_t v = 0; v < visits.all.size(); ++v) {
    const Visit& visit = visits.all[v];
    const int64_t base = first[static_cast<size_t>(visit.layer)];
    const auto count = static_cast<int64_t>(visit.experts.size());
    const auto needed = [&](int64_t place) {
      return base + visit.experts[static_cast<size_t>(place)];
    };
    policy.visit(visit.layer, visit.rows);
    for (int64_t i = 0; i < count; ++i) {
      place_of[static_cast<size_t>(needed(i))] = i;
      policy.use(needed(i), visit.uses[static_cast<size_t>(i)]);
    }
    int64_t right = 0;
    for (const int64_t id : sure_ids) {
      if (sure_layer == visit.layer && place_of[static_cast<size_t>(id)] >= 0) {
        ++right;
      } else {
        is_sure[static_cast<size_t>(id)] = 0;
      }
    }
    if (sure_layer == visit.layer) sure_next.came(static_cast<int64_t>(sure_ids.size()), right);
    sure_layer = -1;
    sure_ids.clear();
    const auto next = static_cast<size_t>(visit.layer) + 1;
    const int64_t chosen = std::accumulate(visit.uses.begin(), visit.uses.end(), int64_t{0});
    const bool about_all = sure > 0 && next < visits.experts.size() && visit.rows > 0 &&
                           sure_next.ask(visits.experts[next], chosen / visit.rows, visit.rows);
    const bool counts = static_cast<int64_t>(v) >= counted;
    for (int64_t place = 0; place < count; ++place) {
      const int64_t expert = needed(place);
      if (is_sure[static_cast<size_t>(expert)]) {
        is_sure[static_cast<size_t>(expert)] = 0;
        done.misses += counts;
      } else if (held[static_cast<size_t>(expert)]) {
        done.hits += counts;
      } else {
        done.misses += counts;
        held[static_cast<size_t>(expert)] = 1;
        if (static_cast<int64_t>(holds.size()) < slots) {
          holds.push_back(expert);
        } else {
          // Neither those give way that are needed later nor those last admitted, while there is
          // any other.
          const int64_t ahead = std::min(ExpertCache::kAhead, slots - 1);
          may_go.clear();
          where.clear();
          size_t last = 0;
          int64_t last_place = -1;
          for (size_t i = 0; i < holds.size(); ++i) {
            const int64_t at = place_of[static_cast<size_t>(holds[i])];
            if (at > last_place) {
              last_place = at;
              last = i;
            }
            if (at >= 0 && at >= place - ahead) continue;
            may_go.push_back(holds[i]);
            where.push_back(i);
          }
          const size_t slot = may_go.empty() ? last : where[policy.choose(may_go)];
          held[static_cast<size_t>(holds[slot])] = is_sure[static_cast<size_t>(holds[slot])] = 0;
          holds[slot] = expert;
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) place_of[static_cast<size_t>(needed(i))] = -1;
    if (!about_all) continue;
    // First of others than this layer's, and of these once it is over.
    int64_t e = first[next];
    for (const bool over : {false, true}) {
      for (; e < first[next + 1] && static_cast<int64_t>(sure_ids.size()) < sure; ++e) {
        if (held[static_cast<size_t>(e)]) continue;
        if (static_cast<int64_t>(holds.size()) < slots) {
          holds.push_back(e);
        } else {
          may_go.clear();
          where.clear();
          for (size_t i = 0; i < holds.size(); ++i) {
            const bool of_next = holds[i] >= first[next] && holds[i] < first[next + 1];
            const bool of_this = holds[i] >= base && holds[i] < first[next];
            if (of_next || (of_this && !over)) continue;
            may_go.push_back(holds[i]);
            where.push_back(i);
          }
          if (may_go.empty()) break;
          const size_t slot = where[policy.choose(may_go)];
          held[static_cast<size_t>(holds[slot])] = 0;
          holds[slot] = e;
        }
        held[static_cast<size_t>(e)] = is_sure[static_cast<size_t>(e)] = 1;
        sure_layer = static_cast<int>(next);
        sure_ids.push_back(e);
      }
    }
  }
  return done;
}

}  // namespace strata
