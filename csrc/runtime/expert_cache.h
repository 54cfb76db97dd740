// Experts in memory for a while: those of all layers that do not stay share slots.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/expert_policy.h"
#include "runtime/read_queue.h"
#include "runtime/weight_place.h"

namespace strata {

// An [n, k] matrix of each of some experts, as files have them. `places` has one for each, or one of
// all of them, behind each other, where none ends within a panel.
struct ExpertMatrix {
  std::vector<WeightPlacePtr> places;
  int64_t experts, n, k;

  Format format() const { return places[0]->format; }
  const WeightPlace& place(int64_t expert) const {
    return *places[places.size() == 1 ? 0 : static_cast<size_t>(expert)];
  }
  // Where an expert's panels begin in its place.
  int64_t first_panel(int64_t expert) const { return places.size() == 1 ? expert * panels(n) : 0; }
  // Bytes of an expert: packed, and in the file.
  int64_t packed() const { return panels(n) * places[0]->panel_bytes(); }
  int64_t file_bytes(int64_t expert) const;
};
using ExpertMatrixPtr = std::shared_ptr<const ExpertMatrix>;
// What an expert of a layer consists of: gate (where there is one), up and down.
using ExpertMatrices = std::vector<ExpertMatrixPtr>;

// Slots, each with room for any one expert, packed as the kernels want it while it is read: one that
// is found costs no more than a weight that stays. A *visit* is what a step does in a layer: it needs
// some experts, takes those that are here and those that come, and is finished with them in rising
// order. Which are read and which give way depends on the order of visits alone, never on the time
// that something takes. For one thread at a time.
class ExpertCache {
 public:
  // Reads are of at most about `request_bytes`.
  ExpertCache(std::vector<ExpertMatrices> layers, int64_t slots, int64_t request_bytes,
              std::shared_ptr<Readers> readers);
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  // Bytes of a slot, and of scratch that each reader needs.
  static int64_t slot_bytes(const std::vector<ExpertMatrices>& layers);
  static int64_t scratch_bytes(const std::vector<ExpertMatrices>& layers, int64_t request_bytes);
  // So many experts of a visit may be on their way or in use before one of them gives way to the
  // next: enough to keep a disk busy.
  static constexpr int64_t kAhead = 8;

  // Begins a visit that needs these, numbers in rising order.
  void begin(int layer, const std::vector<int32_t>& needed);
  // Adds to `ready` the places within `needed` of those that have come to be here since; waits for
  // one if there is none. ReadError if one could not be read.
  void take(std::vector<int32_t>& ready, const Check& check);
  // The first so many of the needed have done what they were needed for.
  void finished(size_t count) { finished_ = count; }
  // Where matrix `part` of a needed one lies that is ready.
  const uint8_t* weight(int32_t place, size_t part) const;
  // All was done. ReadError if a file from which something was read is no longer what it was.
  void verify();
  // Ends a visit, whether or not all was done.
  void end();

  const std::vector<ExpertMatrices>& layers() const { return matrices_; }
  int64_t nbytes() const { return static_cast<int64_t>(memory_.size()); }

  // The following may be asked for by any thread. Experts that visits found here, and that had to be
  // read; bytes of the file that the visits needed, and that were read for them.
  struct Counts {
    std::atomic<int64_t> hits{0}, misses{0}, needed{0}, read{0};
  };
  const Counts& counts() const { return counts_; }

  // From now on the visits are written down, or no longer; not while one is under way.
  void record(bool on);
  using Visit = std::pair<int, std::vector<int32_t>>;
  const std::vector<Visit>& visits() const { return visits_; }

 private:
  struct Read {
    size_t part;
    int64_t panel0, panel1;
  };
  struct Layer {
    int64_t first;                 // number of its first expert among those of all layers
    std::vector<int64_t> offsets;  // of each matrix in a slot
    std::vector<Read> reads;       // of one expert
  };
  class Slot;

  int64_t find_slot(size_t place) const;
  bool admit(size_t place);
  void forget(Slot& slot);

  const std::vector<ExpertMatrices> matrices_;
  const int64_t request_bytes_;
  const std::shared_ptr<Readers> readers_;
  std::vector<Layer> layers_;
  AlignedBytes memory_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<int32_t> slot_of_;   // of each expert of all layers; -1: not here
  std::unique_ptr<ExpertPolicy> policy_;

  // The visit that is under way.
  int layer_ = -1;
  std::vector<int32_t> needed_;
  std::vector<int32_t> place_of_;   // of each expert of the layer: its place in needed_, or -1
  std::vector<uint8_t> taken_;
  size_t admitted_ = 0, finished_ = 0;
  std::vector<const WeightFile*> read_from_;

  Counts counts_;
  bool recording_ = false;
  std::vector<Visit> visits_;
};

}  // namespace strata
