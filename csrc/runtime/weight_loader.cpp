#include "runtime/weight_loader.h"

#include <algorithm>
#include <limits>

namespace strata {
namespace {

// What threads read into before it is packed: one buffer, so that it is made of huge pages although
// the part of each thread is smaller than one.
class Staging {
 public:
  Staging(int64_t each, int threads)
      : each_(aligned(each)), bytes_(static_cast<size_t>(size(each, threads)), false,
                                     WeightFile::kBufferAlign) {}
  uint8_t* data() { return bytes_.data(); }
  int64_t each() const { return each_; }

 private:
  static int64_t size(int64_t each, int threads) {
    constexpr auto kPage = static_cast<int64_t>(AlignedBytes::kHugePage);
    return (aligned(each) * threads + kPage - 1) / kPage * kPage;
  }
  static int64_t aligned(int64_t bytes) {
    constexpr int64_t kTo = WeightFile::kBufferAlign;
    return (bytes + kTo - 1) / kTo * kTo;
  }

  int64_t each_;
  AlignedBytes bytes_;
};

class LoadBatch final : public ReadBatch {
 public:
  LoadBatch(const std::vector<WeightLoad>& loads, int64_t request_bytes, ReadCounters& counters)
      : counters_(counters) {
    for (const WeightLoad& l : loads) {
      const int64_t step = l.place->panels_at_once(request_bytes);
      staging_ = std::max(staging_, l.place->staging(step));
      for (int64_t p = 0; p < panels(l.place->n); p += step) {
        parts_.push_back({&l, p, std::min(p + step, panels(l.place->n))});
      }
    }
  }
  // Bytes that each thread reads into.
  int64_t staging() const { return staging_; }

  size_t reads() const override { return parts_.size(); }
  int64_t bytes(size_t read) const override {
    const Part& p = parts_[read];
    return p.load->place->file_bytes(p.panel0, p.panel1);
  }
  void read(size_t read, uint8_t* staging) override {
    const Part& p = parts_[read];
    const WeightPlace& place = *p.load->place;
    uint8_t* const out = p.load->weight->bytes.data();
    place.read_panels(p.panel0, p.panel1,
                      out + (p.load->panel + p.panel0) * place.panel_bytes(), staging, counters_);
  }

 private:
  struct Part {
    const WeightLoad* load;
    int64_t panel0, panel1;
  };
  std::vector<Part> parts_;
  int64_t staging_ = 0;
  ReadCounters& counters_;
};

}  // namespace

void load_weights(const std::vector<WeightLoad>& loads, int threads, int64_t request_bytes,
                  const Check& check, ReadCounters& counters) {
  LoadBatch batch(loads, request_bytes, counters);
  if (batch.reads() == 0) return;
  const auto team = static_cast<int>(std::min(static_cast<size_t>(threads), batch.reads()));
  Staging staging(batch.staging(), team);
  {
    ReadQueue queue(team, staging.data(), staging.each(), std::numeric_limits<int64_t>::max());
    queue.submit(&batch);
    queue.wait(batch, check);
  }
  for (const WeightLoad& l : loads) l.place->file->check_unchanged();
}

}  // namespace strata
