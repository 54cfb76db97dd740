// Nodes that cut rows into heads and put heads together.
#include <algorithm>
#include <cstring>

#include "runtime/nodes.h"

namespace strata {
namespace {

constexpr int64_t kChunksPerThread = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// For each head some floats of one row behind some of another.
class HeadsNode final : public Node {
 public:
  explicit HeadsNode(HeadsSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    const int64_t rows = c.rows(s_.out);
    rows_ = std::max<int64_t>(1, rows / (kChunksPerThread * c.threads));
    return ceil_div(rows, rows_);
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t end = std::min((index + 1) * rows_, c.rows(s_.out));
    for (int64_t r = index * rows_; r < end; ++r) {
      float* out = c.f32(s_.out, r);
      for (int64_t h = 0; h < s_.heads; ++h) {
        for (const HeadsPart& p : s_.parts) {
          std::memcpy(out, c.f32(p.x, r) + h * p.stride + p.start,
                      static_cast<size_t>(p.width) * sizeof(float));
          out += p.width;
        }
      }
    }
  }

 private:
  HeadsSpec s_;
  int64_t rows_ = 1;
};

}  // namespace

std::unique_ptr<Node> make_heads(HeadsSpec spec) {
  return std::make_unique<HeadsNode>(std::move(spec));
}

}  // namespace strata
