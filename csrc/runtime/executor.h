// Runs one Segment: its Ops lowered to nodes over buffers of an arena.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/storage.h"
#include "runtime/thread_team.h"

namespace strata {

// Rows of one sequence within a step (see strata.backends.base.Span).
struct Span {
  int64_t row, rows, past;
  const int32_t* table;
};

// What changes from run to run.
struct StepView {
  int64_t tokens_count;
  const int32_t* tokens;
  const int32_t* positions;
  const int32_t* out_rows;
  int64_t out_rows_count;
  std::vector<Span> spans;
  int64_t max_position;  // largest position plus one
};

// Where an activation lies: byte offsets in the arena, or -1 where that form is not kept.
struct Value {
  int64_t width;
  int64_t f32;             // kExternal: the caller's output buffer
  int64_t q8;
  bool selected;           // has the step's out_rows instead of its tokens
  static constexpr int64_t kNone = -1;
  static constexpr int64_t kExternal = -2;
};

struct Context {
  const KernelTable* matrix;
  const StepKernels* step_kernels;
  Arena* arena;
  const StepView* step;
  KvStore* kv;
  float* external;
  int threads;

  int64_t rows(const Value& v) const {
    return v.selected ? step->out_rows_count : step->tokens_count;
  }
  float* f32(const Value& v, int64_t row) const {
    float* base = v.f32 == Value::kExternal ? external
                                            : reinterpret_cast<float*>(arena->data() + v.f32);
    return base + row * v.width;
  }
  uint8_t* q8(const Value& v, int64_t row) const {
    return arena->data() + v.q8 + row * static_cast<int64_t>(act_row_bytes(ActKind::q8, v.width));
  }
};

// A node is one phase of the job; `begin` may look at the step, `chunk` runs on any thread.
class Node {
 public:
  virtual ~Node() = default;
  virtual int64_t begin(const Context& c) = 0;
  virtual void chunk(const Context& c, int64_t index, int thread) = 0;
};

class Segment {
 public:
  Segment() = default;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  void add(std::unique_ptr<Node> node) { nodes_.push_back(std::move(node)); }
  void run(ThreadTeam& team, const Context& context);
  int64_t nodes() const { return static_cast<int64_t>(nodes_.size()); }
  // Seconds spent in each node since the last call; empty unless timing is on.
  std::vector<double> take_times();
  void set_timing(bool on) { timing_ = on; }

 private:
  friend class SegmentJob;
  std::vector<std::unique_ptr<Node>> nodes_;
  bool timing_ = false;
  std::vector<double> times_;
};

}  // namespace strata
