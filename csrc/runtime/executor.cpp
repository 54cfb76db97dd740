#include "runtime/executor.h"

#include <chrono>

#include "runtime/stream.h"

namespace strata {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void Failure::keep(std::exception_ptr e) {
  std::lock_guard<std::mutex> hold(lock_);
  if (!first_) first_ = std::move(e);
  any_ = true;
}

void Failure::rethrow() {
  if (any()) std::rethrow_exception(first_);
}

// Nodes [first, end) of a Segment. After a failure nothing more is computed.
class SegmentJob final : public Job {
 public:
  SegmentJob(Segment& segment, const Context& context, int64_t first, int64_t end)
      : segment_(segment), context_(context), first_(first), end_(end) {}

  int phases() const override { return static_cast<int>(end_ - first_); }

  int64_t begin(int phase) override {
    if (segment_.timing_) mark(first_ + phase);
    if (failure.any()) return 0;
    try {
      return node(phase).begin(context_);
    } catch (...) {
      failure.keep(std::current_exception());
      return 0;
    }
  }

  void chunk(int phase, int64_t index, int thread) override {
    if (failure.any()) return;
    try {
      node(phase).chunk(context_, index, thread);
    } catch (...) {
      failure.keep(std::current_exception());
    }
  }

  // Closes the phase that was running and starts the clock of the next one.
  void mark(int64_t node) {
    const double t = now();
    if (running_ >= 0) segment_.times_[static_cast<size_t>(running_)] += t - since_;
    running_ = node;
    since_ = t;
  }

  Failure failure;

 private:
  Node& node(int phase) { return *segment_.nodes_[static_cast<size_t>(first_ + phase)]; }

  Segment& segment_;
  const Context& context_;
  int64_t first_, end_;
  int64_t running_ = -1;
  double since_ = 0;
};

void Segment::run_nodes(ThreadTeam& team, const Context& context, int64_t begin, int64_t end) {
  SegmentJob job(*this, context, begin, end);
  team.run(job);
  if (timing_) job.mark(-1);
  job.failure.rethrow();
}

void Segment::run(ThreadTeam& team, const Context& context, Stream* stream, int track,
                  const Check& check) {
  if (timing_) times_.resize(nodes_.size());
  run_nodes(team, context, 0, streamed() ? streamed_[0].node : nodes());
  auto checked = std::chrono::steady_clock::now();
  int piece = 0;
  for (size_t i = 0; i < streamed_.size(); ++i) {
    const int64_t next = i + 1 < streamed_.size() ? streamed_[i + 1].node : nodes();
    for (int left = streamed_[i].pieces; left > 0; --left) {
      Context with_piece = context;
      with_piece.piece = &stream->acquire(track, piece++, check);
      // What follows the product runs in the same go as its last piece.
      run_nodes(team, with_piece, streamed_[i].node, left == 1 ? next : streamed_[i].node + 1);
      stream->release();
      if (std::chrono::steady_clock::now() - checked >= kCheckEvery) {
        check();
        checked = std::chrono::steady_clock::now();
      }
    }
  }
  if (streamed()) stream->check_files();
}

std::vector<double> Segment::take_times() {
  std::vector<double> out = std::move(times_);
  times_.assign(timing_ ? nodes_.size() : 0, 0.0);
  return out;
}

}  // namespace strata
