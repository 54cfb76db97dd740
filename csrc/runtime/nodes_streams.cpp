#include <algorithm>

#include "runtime/nodes.h"

namespace strata {
namespace {

constexpr int64_t kChunksPerThread = 4;

// Functions of rows; each chunk is some of them.
class StreamsNode final : public Node {
 public:
  explicit StreamsNode(StreamsSpec spec) : s_(std::move(spec)) {}

  int64_t begin(const Context& c) override {
    const int64_t rows = c.rows(s_.out);
    rows_ = std::max<int64_t>(1, rows / (kChunksPerThread * c.threads));
    return (rows + rows_ - 1) / rows_;
  }

  void chunk(const Context& c, int64_t index, int) override {
    const int64_t end = std::min((index + 1) * rows_, c.rows(s_.out));
    for (int64_t r = index * rows_; r < end; ++r) {
      apply(*c.step_kernels, c.f32(s_.x, r), s_.other ? c.f32(*s_.other, r) : nullptr,
            c.f32(s_.out, r));
    }
  }

 private:
  void apply(const StepKernels& k, const float* x, const float* other, float* out) const {
    switch (s_.function) {
      case StreamsFunction::mix: {
        const int64_t width = s_.x.width / s_.count;
        for (int64_t j = 0; j < s_.out.width / width; ++j) {
          k.mix(x, other + j * s_.count, s_.count, width, out + j * width);
        }
        break;
      }
      case StreamsFunction::match_rms: {
        const int64_t width = s_.other->width;
        for (int64_t i = 0; i < s_.x.width; i += width) {
          k.match_rms(x + i, other, s_.number, width, out + i);
        }
        break;
      }
      case StreamsFunction::sinkhorn: k.sinkhorn(x, s_.count, s_.iterations, s_.number, out); break;
      case StreamsFunction::cutoff: k.cutoff(x, s_.number, s_.count, s_.x.width, out); break;
    }
  }

  StreamsSpec s_;
  int64_t rows_ = 1;
};

}  // namespace

std::unique_ptr<Node> make_streams(StreamsSpec spec) {
  return std::make_unique<StreamsNode>(std::move(spec));
}

}  // namespace strata
