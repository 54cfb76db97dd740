// What attention shares with the choice of its keys.
#pragma once
#include "runtime/nodes.h"

namespace strata {

// How the attention of a step is cut, decided by its nodes in their order. Whether splits are
// computed apart or one after the other does not change a bit: both merge in the same order.
struct Cut {
  bool split = false;
  bool in_turns = false;           // splits of a row have one partial result, span after span
  int64_t splits = 0;              // most that a span sees
  const uint64_t* chosen = nullptr;   // of all rows of the step the blocks they see, if not all
  int64_t chosen_words = 0;
  const uint64_t* masks = nullptr;    // of all rows the keys of each block, if not all
  int64_t mask_words = 0;
  float* partials = nullptr;
  int64_t partial_stride = 0;      // floats of one span
};

const AttendKernels& attend_kernels(const Context& c, const AttentionSpec& s);
AttentionArgs attention_arguments(const Context& c, const AttentionSpec& s, const Span& span);
std::unique_ptr<Node> make_store(AttentionSpec spec);
// From positions, which are those of the keys that a row sees, to bits.
std::unique_ptr<Node> make_mask(Value positions, std::shared_ptr<Cut> cut);

}  // namespace strata
