#include "runtime/executor.h"

#include <chrono>

namespace strata {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

class SegmentJob final : public Job {
 public:
  SegmentJob(Segment& segment, const Context& context) : segment_(segment), context_(context) {}

  int phases() const override { return static_cast<int>(segment_.nodes_.size()); }

  int64_t begin(int phase) override {
    if (segment_.timing_) mark(phase);
    return node(phase).begin(context_);
  }

  void chunk(int phase, int64_t index, int thread) override {
    node(phase).chunk(context_, index, thread);
  }

  // Closes the phase that was running and starts the clock of the next one.
  void mark(int phase) {
    const double t = now();
    if (running_ >= 0) segment_.times_[static_cast<size_t>(running_)] += t - since_;
    running_ = phase;
    since_ = t;
  }

 private:
  Node& node(int phase) { return *segment_.nodes_[static_cast<size_t>(phase)]; }

  Segment& segment_;
  const Context& context_;
  int running_ = -1;
  double since_ = 0;
};

void Segment::run(ThreadTeam& team, const Context& context) {
  if (timing_) times_.resize(nodes_.size());
  SegmentJob job(*this, context);
  team.run(job);
  if (timing_) job.mark(-1);
}

std::vector<double> Segment::take_times() {
  std::vector<double> out = std::move(times_);
  times_.assign(timing_ ? nodes_.size() : 0, 0.0);
  return out;
}

}  // namespace strata
