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
// order. Which are found, which are missing and which give way depends on the order of visits alone,
// never on the time that something takes. For one thread at a time.
//
// Some slots may be kept for those that a coming visit will probably need: they are read while
// nothing else is, and are as missing as before when they are needed, but for that their bytes are
// here or on their way. When their visit is over, the others of them are forgotten.
//
// Where so many rows choose that the next layer needs about all of its experts, those that are missing
// are read as soon as all that this one needs is asked for, into slots of any others: of at most so many
// as are for them. They, too, count as missing when they are needed.
class ExpertCache {
 public:
  // Reads are of at most about `request_bytes`. Of the slots `ahead` are for what is foreseen, and at
  // most `sure` for what the next layer is sure to need: together fewer than all. Rows lose worth by
  // `decay`.
  ExpertCache(std::vector<ExpertMatrices> layers, int64_t slots, int64_t request_bytes,
              std::shared_ptr<Readers> readers, int64_t ahead = 0,
              double decay = DecayingFrequency::kDecay, int64_t sure = 0);
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  // Bytes of a slot, and of scratch that each reader needs.
  static int64_t slot_bytes(const std::vector<ExpertMatrices>& layers);
  static int64_t scratch_bytes(const std::vector<ExpertMatrices>& layers, int64_t request_bytes);
  // So many experts of a visit may be on their way or in use before one of them gives way to the
  // next: enough to keep a disk busy.
  static constexpr int64_t kAhead = 8;

  // What uses so far are worth to the policy, of each expert of all layers. A cache in which nothing
  // was needed yet may begin with what another one had: those that are worth most are here from then
  // on, and are read while nothing else is, or when they are needed.
  std::vector<double> scores() const { return policy_->scores(); }
  void begin_with(const std::vector<double>& scores);
  // Whether it is worth while to foresee: always at first, then as long as at least half of what was
  // read ahead was needed, and else now and then.
  bool foresees();
  // The next visit is to this layer, and will probably need these, the likeliest first.
  void foresee(int layer, const std::vector<int32_t>& likely);
  // Begins a visit that needs these, numbers in rising order, because rows chose so: `top_k` each.
  void begin(int layer, const std::vector<int32_t>& needed, const int32_t* chosen, int64_t rows,
             int64_t top_k);
  // Adds to `ready` the places within `needed` of those that have come to be here since; waits for
  // one if there is none. ReadError if one could not be read.
  void take(std::vector<int32_t>& ready, const Check& check);
  // The first so many of the needed have done what they were needed for.
  void finished(size_t count) { finished_ = count; }
  // Where matrix `part` of a needed one lies that is ready.
  const uint8_t* weight(int32_t place, size_t part) const;
  // The visit that is under way has done all, and the next one is to the layer after it.
  void look_ahead() { read_next(true); }
  // All was done. ReadError if a file from which something was read is no longer what it was.
  void verify();
  // Ends a visit, whether or not all was done.
  void end();

  // Between two visits: so many slots from now on, of which so many are as said, and rows that lose
  // worth by `decay`. Of experts for which there is no slot any more those go that would give way
  // first, and their memory with them.
  void resize(int64_t slots, int64_t ahead, double decay, int64_t sure);
  // Between two visits: others read from now on.
  void read_by(std::shared_ptr<Readers> readers);

  const std::vector<ExpertMatrices>& layers() const { return matrices_; }
  int64_t slots() const { return static_cast<int64_t>(slots_.size()); }
  int64_t ahead() const { return ahead_; }
  int64_t sure() const { return sure_slots_; }
  double decay() const { return policy_->decay(); }
  int64_t nbytes() const { return slots() * each_; }

  // The following may be asked for by any thread. Experts that visits found here, and that had to be
  // read; bytes of the file that the visits needed, and that were read for them. Experts that were
  // not here and foreseen, for as many as there are slots, and how many of these were needed. All
  // that depends on visits and what is foreseen alone; on time depends how many of those read had
  // been begun ahead, foreseen or sure, and the bytes of these, and bytes that were read ahead in vain.
  struct Counts {
    std::atomic<int64_t> hits{0}, misses{0}, needed{0}, read{0};
    std::atomic<int64_t> foreseen{0}, right{0}, begun{0}, ahead{0}, wasted{0};
    std::atomic<int64_t> begun_with{0};   // experts that were here from the beginning
  };
  const Counts& counts() const { return counts_; }

  // From now on the visits are written down, or no longer; not while one is under way.
  void record(bool on);
  const std::vector<Visit>& visits() const { return visits_; }
  struct Route {
    int layer;
    int64_t rows;
    std::vector<int32_t> chosen;   // by row
  };
  const std::vector<Route>& routes() const { return routes_; }

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

  // Slots that came together, behind each other.
  struct Piece {
    std::unique_ptr<AlignedBytes> bytes;
    int64_t slots;
  };

  int64_t capacity() const { return slots() - ahead_; }
  int64_t find_victim(size_t place) const;
  int64_t find_other(bool over) const;
  void read_next(bool over);
  void settle_foreseen();
  void settle_sure();
  bool admit(size_t place);
  int64_t bring(int32_t expert, int64_t id);
  int64_t read_into_empty(int layer, int32_t expert, Urgency urgency);
  void keep(int64_t slot);
  void forget(int64_t slot);
  void forget_failed(int64_t id);
  void forget_foreseen();
  void reclaim();
  void settle();
  void read_from(const ExpertMatrices& matrices, int32_t expert);
  void keep_ahead(int64_t slots);
  void count_free();
  void add_slots(int64_t count);
  void remove_slots(int64_t count);

  const std::vector<ExpertMatrices> matrices_;
  const int64_t request_bytes_, each_;
  std::shared_ptr<Readers> readers_;
  std::vector<Layer> layers_;
  std::vector<Piece> memory_;   // of slots in the order of their numbers
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<int32_t> slot_of_;   // of each expert of all layers; -1: not here
  std::vector<int64_t> free_;      // slots in which nothing is
  int64_t ahead_ = 0, held_ = 0;   // slots for what is foreseen; experts that are here
  int foreseen_layer_ = -1;
  std::vector<int64_t> ahead_slots_;   // of those that were foreseen for the coming visit,
  std::vector<int64_t> leaving_;       // and of those in vain of which reads are still under way
  double asked_ = 0, right_ = 0;       // foreseen, and needed of them, the last ones more
  int64_t passed_ = 0;                 // visits for which nothing was foreseen, in a row
  SureNext sure_next_;
  int64_t sure_slots_ = 0;             // as many as may be for what is sure to be needed
  int sure_layer_ = -1;
  std::vector<int64_t> sure_ids_;      // of those that were read because it is sure to need them
  std::unique_ptr<DecayingFrequency> policy_;

  // The visit that is under way.
  int layer_ = -1;
  std::vector<int32_t> needed_;
  std::vector<int32_t> uses_;       // choices of each of them
  std::vector<int32_t> place_of_;   // of each expert of the layer: its place in needed_, or -1
  std::vector<uint8_t> taken_;
  size_t admitted_ = 0, finished_ = 0;
  int32_t next_ = 0, next_end_ = 0;   // experts of the next layer that are sure to be needed
  std::vector<const WeightFile*> read_from_;

  Counts counts_;
  bool recording_ = false;
  std::vector<Visit> visits_;
  std::vector<Route> routes_;
};

}  // namespace strata
