// Runs one Segment: its Ops lowered to nodes over buffers of an arena.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/storage.h"
#include "runtime/thread_team.h"

namespace strata {

// Rows of one sequence within a step (see strata.backends.base.Span).
struct Span {
  int64_t row, rows, past;
  const int32_t* const* tables;   // by group
};

// Rows [row0, row1) of ancestors, the first of them at `position`, whose keys and values a branch
// has in its own blocks too: those of span number `span`.
struct Inherited {
  int64_t row0, row1, position;
  size_t span;
};

// What changes from run to run.
struct StepView {
  int64_t tokens_count;
  const int32_t* tokens;
  const int32_t* positions;
  const int32_t* logits_indices;
  int64_t logits_count;
  std::vector<Span> spans;
  std::vector<Inherited> inherited;
  int64_t max_position;  // largest position plus one
};

// Where an activation lies: byte offsets in the arena, or -1 where that form is not kept.
struct Value {
  int64_t width;
  int64_t f32;             // kExternal: the caller's output buffer
  int64_t q8;
  bool selected;           // has the step's rows of logits instead of its tokens
  int64_t planes = 1;      // of int8: 2 where what the first leaves over is kept, too
  static constexpr int64_t kNone = -1;
  static constexpr int64_t kExternal = -2;
};

struct WeightPlace;

// Panels [panel0, panel1) of part number `part` of a product, as far as they are in memory: packed,
// or as rows of a file.
struct PanelView {
  int part;
  int64_t panel0, panel1;
  const uint8_t* base;                   // where panel 0 lies, or would lie; with `place`, where
  const WeightPlace* place = nullptr;    // the rows of panel0 lie, which it can pack
};

// The first exception that a chunk threw: it must not leave the thread it was thrown on.
class Failure {
 public:
  void keep(std::exception_ptr e);
  bool any() const { return any_.load(std::memory_order_relaxed); }
  void rethrow();

 private:
  std::atomic<bool> any_{false};
  std::mutex lock_;
  std::exception_ptr first_;
};

struct Context {
  const KernelTable* matrix;
  const StepKernels* step_kernels;
  Arena* arena;
  const StepView* step;
  StateStore* state;
  float* external;
  int threads;
  const std::vector<PanelView>* tile = nullptr;   // what a streamed product works on

  int64_t rows(const Value& v) const {
    return v.selected ? step->logits_count : step->tokens_count;
  }
  float* f32(const Value& v, int64_t row) const {
    float* base = v.f32 == Value::kExternal ? external
                                            : reinterpret_cast<float*>(arena->data() + v.f32);
    return base + row * v.width;
  }
  uint8_t* narrow(int64_t place, const Value& v, int64_t row) const {
    return arena->data() + place + row * static_cast<int64_t>(act_row_bytes(ActKind::bf16, v.width));
  }
  uint8_t* q8(const Value& v, int64_t row) const {
    return arena->data() + v.q8 + row * v.planes * q8_bytes(v);
  }
  // Blocks [block0, block1) of a row at x to all that is kept of it as int8.
  void quantize(const Value& v, int64_t row, const float* x, int64_t block0, int64_t block1) const {
    uint8_t* const first = q8(v, row);
    uint8_t* const rest = v.planes == 2 ? first + q8_bytes(v) : nullptr;
    matrix->quantize_blocks(x, v.width, block0, block1, first, rest);
  }
  static int64_t q8_bytes(const Value& v) {
    return static_cast<int64_t>(act_row_bytes(ActKind::q8, v.width));
  }
};

// A node is one phase of the job; `begin` may look at the step, `chunk` runs on any thread.
class Node {
 public:
  virtual ~Node() = default;
  virtual int64_t begin(const Context& c) = 0;
  virtual void chunk(const Context& c, int64_t index, int thread) = 0;
};

// A node in its place within a run.
struct Phase {
  Node* node;
  double* seconds;     // where its time is added, null without timing
  int segment;         // the number, within the run, of the Segment that it belongs to
};

class Stream;

// Nodes that run in turns: each time on those of their weights that are in memory by then.
class Turns {
 public:
  virtual ~Turns() = default;
  // What the step needs is known by now: asks for it.
  virtual void begin(const Context& c) = 0;
  // Waits until there is something to work on; false when all is done. `check` is called now and
  // then and may throw. ReadError if something cannot be read.
  virtual bool next(const std::function<void()>& check) = 0;
  // After the last turn, and after one that failed.
  virtual void end() = 0;
};

// What a Segment was lowered to.
class NodeList {
 public:
  NodeList() = default;
  NodeList(const NodeList&) = delete;
  NodeList& operator=(const NodeList&) = delete;
  void add(std::unique_ptr<Node> node) { nodes_.push_back(std::move(node)); }
  // The last node's weights come in so many tiles, from the stream that `run` is given.
  void add_streamed(std::unique_ptr<Node> node, int tiles) {
    streamed_.push_back({nodes(), tiles, 1, nullptr});
    add(std::move(node));
  }
  // The last so many nodes run in turns.
  void in_turns(int64_t count, std::shared_ptr<Turns> turns) {
    streamed_.push_back({nodes() - count, 0, count, std::move(turns)});
  }
  // Runs the nodes; those that are streamed a tile at a time, as tiles of `track` come, and those
  // with turns as often as these say. `check` is called now and then and may throw. Throws what a node threw, or ReadError.
  void run(ThreadTeam& team, const Context& context, Stream* stream, int track,
           const std::function<void()>& check);
  // The same for a run of several Segments, none of them streamed.
  void append_to(std::vector<Phase>& run, int number);
  int64_t nodes() const { return static_cast<int64_t>(nodes_.size()); }
  bool streamed() const { return !streamed_.empty(); }
  // Seconds spent in each node since the last call; empty unless timing is on.
  std::vector<double> take_times();
  void set_timing(bool on) { timing_ = on; }

 private:
  struct Streamed {
    int64_t node;
    int tiles;
    int64_t count;                  // of nodes
    std::shared_ptr<Turns> turns;   // null: tiles
  };
  void append_nodes(std::vector<Phase>& run, int64_t begin, int64_t end, int number);
  void run_nodes(ThreadTeam& team, const Context& context, int64_t begin, int64_t end);

  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Streamed> streamed_;
  bool timing_ = false;
  std::vector<double> times_;
};

// Runs phases one after the other; `current` is told the number of the Segment. Throws what a node
// threw.
void run_phases(ThreadTeam& team, const Context& context, const std::vector<Phase>& phases,
                std::atomic<int>* current);

}  // namespace strata
