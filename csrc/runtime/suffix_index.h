// Where the end of a text occurred before: an index of what stands before each place of a text.
//
// Places are the nodes of a binary tree, ordered by the tokens before them, read backwards, with the
// newest place on top: the tree of LZMA's match finder (bt4). A place is entered in one walk from the
// top, some dozens of steps for texts that people write, and never more than `kMostSteps`; what lies
// below that is forgotten. Of places with the same `kLongest` tokens before them one is in the tree
// and the older ones hang on it in a row.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace strata {

class SuffixIndex {
 public:
  static constexpr int kLongest = 32;     // tokens of a context that are compared at most
  static constexpr int kMostSteps = 256;  // places that one walk passes at most
  static constexpr int64_t kBytesPerToken = 16;
  static constexpr int64_t kChunk = 4096;  // tokens for which memory is taken at once

  SuffixIndex() = default;
  SuffixIndex(const SuffixIndex&) = delete;
  SuffixIndex& operator=(const SuffixIndex&) = delete;

  int64_t size() const { return size_; }
  // Places that are not entered yet: between two tokens, so one less than there are tokens.
  int64_t behind() const { return size_ - next_ > 0 ? size_ - next_ : 0; }

  // More tokens; their places are entered by `enter`. All or none of them are there after an
  // AllocationError.
  void append(const int32_t* tokens, int64_t count);
  // Enters up to `most` places.
  void enter(int64_t most);

  // The longest end of `text` that stands before a place, in tokens, and in `places` the last `most`
  // such places in rising order. A token of `text` below 0 equals none.
  int find(const int32_t* text, int64_t count, int64_t most, std::vector<int64_t>& places) const;

  int32_t token(int64_t at) const { return chunk(at).tokens[at % kChunk]; }

 private:
  struct Node {
    int32_t less, more;  // below it in the tree, or -1
    int32_t older;       // the place before it with the same context, or -1
  };
  struct Chunk {
    int32_t tokens[kChunk];
    Node nodes[kChunk];
  };
  static_assert(sizeof(Chunk) == kChunk * kBytesPerToken);

  const Chunk& chunk(int64_t at) const { return *chunks_[static_cast<size_t>(at / kChunk)]; }
  Node& node(int64_t at) { return chunks_[static_cast<size_t>(at / kChunk)]->nodes[at % kChunk]; }
  const Node& node(int64_t at) const { return chunk(at).nodes[at % kChunk]; }
  // Token number `back` before a place, from 0; below all tokens where the text begins.
  int32_t before(int64_t place, int back) const {
    return place - 1 - back < 0 ? INT32_MIN : token(place - 1 - back);
  }
  void enter_place(int32_t place);

  std::vector<std::unique_ptr<Chunk>> chunks_;
  int64_t size_ = 0;
  int64_t next_ = 1;
  int32_t top_ = -1;
};

}  // namespace strata
