#include "quant/codebook_tables.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "kernels/decode.h"

namespace strata {
namespace {

struct Outline {
  Format format;
  int dims, count;
  std::vector<float> levels;
};

const std::vector<Outline>& outlines() {
  static const std::vector<Outline> all = {
      {Format::IQ1_S, 8, 2048, {-1, 0, 1}},
      {Format::IQ2_XXS, 8, 256, {8, 25, 43}},
      {Format::IQ2_XS, 8, 512, {8, 25, 43}},
      {Format::IQ2_S, 8, 1024, {8, 25, 43}},
      {Format::IQ3_XXS, 4, 256, {4, 12, 20, 28, 36, 44, 52, 62}},
      {Format::IQ3_S, 4, 512, {1, 3, 5, 7, 9, 11, 13, 15}},
  };
  return all;
}

Codebook make(const Outline& o, const uint8_t* grid) {
  Codebook book{o.dims, o.count, o.levels, {}, {}};
  const bool is_signed = o.levels[0] < 0;
  for (int i = 0; i < o.count * o.dims; ++i) {
    book.points.push_back(is_signed ? static_cast<float>(static_cast<int8_t>(grid[i]))
                                    : static_cast<float>(grid[i]));
  }
  size_t places = 1;
  for (int i = 0; i < o.dims; ++i) places *= o.levels.size();
  book.near.resize(places * kNear);
  std::vector<std::pair<float, uint16_t>> far(static_cast<size_t>(o.count));
  for (size_t place = 0; place < places; ++place) {
    float at[8];
    size_t rest = place;
    for (int i = 0; i < o.dims; ++i, rest /= o.levels.size()) at[i] = o.levels[rest % o.levels.size()];
    for (int p = 0; p < o.count; ++p) {
      float sum = 0;
      for (int i = 0; i < o.dims; ++i) {
        const float gap = at[i] - book.points[static_cast<size_t>(p * o.dims + i)];
        sum += gap * gap;
      }
      far[static_cast<size_t>(p)] = {sum, static_cast<uint16_t>(p)};
    }
    std::partial_sort(far.begin(), far.begin() + kNear, far.end());
    for (int i = 0; i < kNear; ++i) book.near[place * kNear + static_cast<size_t>(i)] = far[static_cast<size_t>(i)].second;
  }
  return book;
}

}  // namespace

const Codebook* codebook_of(Format f) {
  static std::mutex mutex;
  static std::map<Format, Codebook> made;
  if (f == Format::IQ1_M) f = Format::IQ1_S;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto at = made.find(f); at != made.end()) return &at->second;
  for (const Outline& o : outlines()) {
    if (o.format == f && has_grid(f)) return &made.emplace(f, make(o, grid_of(f))).first->second;
  }
  return nullptr;
}

}  // namespace strata
