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

// After a failure nothing more is computed.
class PhasesJob final : public TeamJob {
 public:
  PhasesJob(const std::vector<Phase>& all, const Context& context, std::atomic<int>* current)
      : all_(all), context_(context), current_(current) {}

  int phases() const override { return static_cast<int>(all_.size()); }

  int64_t begin(int phase) override {
    const Phase& p = all_[static_cast<size_t>(phase)];
    if (current_ != nullptr) current_->store(p.segment, std::memory_order_relaxed);
    if (p.seconds != nullptr) mark(p.seconds);
    if (failure.any()) return 0;
    try {
      return p.node->begin(context_);
    } catch (...) {
      failure.keep(std::current_exception());
      return 0;
    }
  }

  void chunk(int phase, int64_t index, int thread) override {
    if (failure.any()) return;
    try {
      all_[static_cast<size_t>(phase)].node->chunk(context_, index, thread);
    } catch (...) {
      failure.keep(std::current_exception());
    }
  }

  // Closes the phase that was running and starts the clock of the next one.
  void mark(double* seconds) {
    const double t = now();
    if (running_ != nullptr) *running_ += t - since_;
    running_ = seconds;
    since_ = t;
  }

  Failure failure;

 private:
  const std::vector<Phase>& all_;
  const Context& context_;
  std::atomic<int>* current_;
  double* running_ = nullptr;
  double since_ = 0;
};

void run_phases(ThreadTeam& team, const Context& context, const std::vector<Phase>& phases,
                std::atomic<int>* current) {
  PhasesJob job(phases, context, current);
  team.run(job);
  job.mark(nullptr);
  job.failure.rethrow();
}

void NodeList::append_nodes(std::vector<Phase>& run, int64_t begin, int64_t end, int number) {
  if (timing_) times_.resize(nodes_.size());
  for (int64_t i = begin; i < end; ++i) {
    const auto at = static_cast<size_t>(i);
    run.push_back({nodes_[at].get(), timing_ ? &times_[at] : nullptr, number});
  }
}

void NodeList::append_to(std::vector<Phase>& run, int number) {
  append_nodes(run, 0, nodes(), number);
}

void NodeList::run_nodes(ThreadTeam& team, const Context& context, int64_t begin, int64_t end) {
  if (begin == end) return;
  std::vector<Phase> phases;
  phases.reserve(static_cast<size_t>(end - begin));
  append_nodes(phases, begin, end, 0);
  run_phases(team, context, phases, nullptr);
}

void NodeList::run(ThreadTeam& team, const Context& context, Stream* stream, int track,
                   const Check& check) {
  auto checked = std::chrono::steady_clock::now();
  int tile = 0;
  int64_t done = 0;   // nodes
  for (size_t i = 0; i < streamed_.size(); ++i) {
    const Streamed& s = streamed_[i];
    run_nodes(team, context, done, s.node);
    done = s.node + s.count;
    if (s.turns) {
      struct Ending {
        Turns& turns;
        ~Ending() { turns.end(); }
      } ending{*s.turns};
      s.turns->begin(context);
      while (s.turns->next(check)) run_nodes(team, context, s.node, done);
      continue;
    }
    const int64_t next = i + 1 < streamed_.size() ? streamed_[i + 1].node : nodes();
    for (int left = s.tiles; left > 0; --left) {
      Context with_tile = context;
      with_tile.tile = &stream->acquire(track, tile++, check);
      // What follows the product runs in the same go as its last tile.
      run_nodes(team, with_tile, s.node, left == 1 ? next : done);
      stream->release();
      if (std::chrono::steady_clock::now() - checked >= kCheckEvery) {
        check();
        checked = std::chrono::steady_clock::now();
      }
    }
    done = next;
  }
  run_nodes(team, context, done, nodes());
  if (tile > 0) stream->check_files();
}

std::vector<double> NodeList::take_times() {
  std::vector<double> out = std::move(times_);
  times_.assign(timing_ ? nodes_.size() : 0, 0.0);
  return out;
}

}  // namespace strata
