#include "runtime/suffix_index.h"

#include <algorithm>
#include <queue>
#include <stdexcept>

#include "runtime/fail_points.h"

namespace strata {

void SuffixIndex::append(const int32_t* tokens, int64_t count) {
  if (count > INT32_MAX - size_) throw std::length_error("a text of more than 2^31 tokens");
  while (static_cast<int64_t>(chunks_.size()) * kChunk < size_ + count) {
    about_to_allocate(sizeof(Chunk));
    // Not cleared: what no token was written to takes no memory.
    chunks_.emplace_back(new Chunk);
  }
  for (int64_t done = 0; done < count;) {
    const int64_t at = size_ % kChunk;
    const int64_t part = std::min(count - done, kChunk - at);
    std::copy_n(tokens + done, part, chunks_[static_cast<size_t>(size_ / kChunk)]->tokens + at);
    size_ += part;
    done += part;
  }
}

void SuffixIndex::enter(int64_t most) {
  for (; most > 0 && next_ < size_; --most) enter_place(static_cast<int32_t>(next_++));
}

void SuffixIndex::enter_place(int32_t place) {
  Node& entered = node(place);
  entered.older = -1;
  int32_t* less = &entered.less;
  int32_t* more = &entered.more;
  int same_less = 0, same_more = 0;
  int32_t at = top_;
  top_ = place;
  for (int steps = 0; at >= 0 && steps < kMostSteps; ++steps) {
    Node& there = node(at);
    int same = std::min(same_less, same_more);
    while (same < kLongest && before(at, same) == before(place, same)) ++same;
    if (same == kLongest) {
      *less = there.less;
      *more = there.more;
      entered.older = at;
      return;
    }
    if (before(at, same) < before(place, same)) {
      *less = at;
      less = &there.more;
      at = there.more;
      same_less = same;
    } else {
      *more = at;
      more = &there.less;
      at = there.less;
      same_more = same;
    }
  }
  *less = *more = -1;
}

int SuffixIndex::find(const int32_t* text, int64_t count, int64_t most,
                      std::vector<int64_t>& places) const {
  places.clear();
  const int longest = static_cast<int>(std::min<int64_t>(count, kLongest));
  const auto wanted = [&](int back) { return back < longest ? text[count - 1 - back] : INT32_MIN; };
  const auto common = [&](int32_t place, int same) {
    while (same < longest && wanted(same) >= 0 && before(place, same) == wanted(same)) ++same;
    return same;
  };
  // The newest of the places with the longest context in common is the first on the way down.
  int best = 0, same_less = 0, same_more = 0;
  int32_t found = -1, at = top_;
  for (int steps = 0; at >= 0 && steps < kMostSteps; ++steps) {
    const int same = common(at, std::min(same_less, same_more));
    if (same > best) {
      best = same;
      found = at;
    }
    if (same == longest) break;
    if (before(at, same) < wanted(same)) {
      at = node(at).more;
      same_less = same;
    } else {
      at = node(at).less;
      same_more = same;
    }
  }
  if (found < 0) return 0;
  // The others are below it, older ones below newer ones.
  struct Next {
    int32_t place;
    bool in_tree;
    bool operator<(const Next& other) const { return place < other.place; }
  };
  std::priority_queue<Next> next;
  const auto look = [&](int32_t place, bool in_tree) {
    if (place >= 0) next.push({place, in_tree});
  };
  look(found, true);
  for (int steps = 0; !next.empty() && steps < kMostSteps; ++steps) {
    const Next now = next.top();
    next.pop();
    const Node& there = node(now.place);
    const int same = now.in_tree ? common(now.place, 0) : best;
    if (same >= best) {
      places.push_back(now.place);
      if (static_cast<int64_t>(places.size()) == most) break;
      look(there.older, false);
    }
    if (!now.in_tree) continue;
    if (same >= best || before(now.place, same) < wanted(same)) look(there.more, true);
    if (same >= best || before(now.place, same) >= wanted(same)) look(there.less, true);
  }
  std::reverse(places.begin(), places.end());
  return best;
}

}  // namespace strata
