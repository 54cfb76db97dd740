// Python's view of weights in files: where they are, loading them, streaming them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "runtime/expert_replay.h"
#include "runtime/nodes.h"
#include "runtime/stream.h"
#include "runtime/weight_loader.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace strata {

void check_signals() {
  nb::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

namespace {

void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}

std::shared_ptr<WeightPlace> make_place(std::shared_ptr<WeightFile> file, int64_t offset,
                                        int format, int64_t n, int64_t k, int storage,
                                        int64_t stored_width, int64_t first_column,
                                        std::optional<nb::ndarray<const float, nb::ndim<2>,
                                                                  nb::c_contig>> factors,
                                        int64_t run, int64_t step) {
  const auto f = static_cast<Format>(format);
  const FormatInfo* info = format_info(f);
  require(info != nullptr, "no kernel for format " + std::to_string(format));
  constexpr int64_t kMost = int64_t{1} << 40;
  require(n > 0 && k > 0 && n < kMost && k < kMost / n && k % info->elements == 0 && offset >= 0,
          "weight: shape does not fit");
  require(storage >= 0 && storage <= static_cast<int>(Storage::scaled), "weight: storage");
  auto place = std::make_shared<WeightPlace>();
  place->file = std::move(file);
  place->offset = offset;
  place->format = f;
  place->n = n;
  place->k = k;
  place->storage = static_cast<Storage>(storage);
  require((place->storage == Storage::scaled) == factors.has_value(), "weight: scales");
  if (place->storage == Storage::columns) {
    require(info->elements == 1 && first_column >= 0 && stored_width < kMost / k &&
                first_column + (run > 0 ? run : n) <= stored_width,
            "weight: columns out of range");
    place->stored_width = stored_width;
    place->first_column = first_column;
  }
  // Each matrix ends with a panel, so that none has rows of two.
  require(run >= 0 && step >= 0 && (run == 0 || (n % run == 0 && run % kPanel == 0 && !factors &&
                                                 step < kMost / (n / run))),
          "weight: rows of several matrices");
  place->run = run;
  place->step = step;
  if (factors) {
    const auto rows = static_cast<int64_t>(factors->shape(0));
    const auto columns = static_cast<int64_t>(factors->shape(1));
    require(f == Format::F8_E4M3_B128, "weight: only 8-bit floats have scales");
    require((rows == 1 || rows == n || rows == (n + 127) / 128) &&
                (columns == 1 || columns == k / info->elements),
            "weight: shape of the scales");
    place->factors.assign(factors->data(), factors->data() + factors->size());
    place->factor_rows = rows == 1 ? n : rows == n ? 1 : 128;
    place->factor_stride = columns;
  }
  return place;
}

using RangeTuple = std::tuple<std::shared_ptr<WeightPlace>, int, int64_t, int64_t>;

std::vector<Track> make_tracks(const std::vector<std::vector<std::vector<RangeTuple>>>& tracks) {
  std::vector<Track> out;
  require(!tracks.empty(), "stream: nothing to read");
  for (const auto& track : tracks) {
    require(!track.empty(), "stream: a track without tiles");
    out.emplace_back();
    for (const auto& tile : track) {
      require(!tile.empty(), "stream: a tile without panels");
      out.back().emplace_back();
      for (const auto& [place, part, panel0, panel1] : tile) {
        require(part >= 0 && panel0 >= 0 && panel0 < panel1 && panel1 <= panels(place->n),
                "stream: panels out of range");
        out.back().back().push_back({place, part, panel0, panel1});
      }
    }
  }
  return out;
}

std::shared_ptr<ExpertMatrix> make_expert_matrix(std::vector<WeightPlacePtr> places, int64_t experts,
                                           int64_t n, int64_t k) {
  const auto count = static_cast<int64_t>(places.size());
  require(experts > 0 && n > 0 && (count == 1 || count == experts), "experts: places");
  require(count == experts || n % kPanel == 0, "experts: one ends within a panel");
  for (const WeightPlacePtr& p : places) {
    require(p->n == (count == experts ? n : experts * n) && p->k == k &&
                p->format == places[0]->format && p->storage == places[0]->storage,
            "experts: places are not alike");
  }
  return std::make_shared<ExpertMatrix>(ExpertMatrix{std::move(places), experts, n, k});
}

// A visit: its layer, rows, experts, and how many choices fell on each.
using VisitTuple = std::tuple<int, int64_t, std::vector<int32_t>, std::vector<int32_t>>;
using ExpertLayers = std::vector<std::vector<std::shared_ptr<ExpertMatrix>>>;

std::vector<ExpertMatrices> make_layers(const ExpertLayers& layers) {
  std::vector<ExpertMatrices> out;
  require(!layers.empty(), "experts: no layers");
  for (const auto& layer : layers) {
    require(layer.size() == 2 || layer.size() == 3, "experts: two or three matrices");
    for (const auto& m : layer) require(m->experts == layer[0]->experts, "experts: as many each");
    out.emplace_back(layer.begin(), layer.end());
  }
  return out;
}

void require_decay(double decay) {
  require(decay > 0 && decay <= 1, "experts: what a use keeps of its worth");
}

void check_threads(int threads) {
  require(threads > 0 && threads <= 64, "reading takes from 1 to 64 threads");
}

void load(const std::vector<std::tuple<std::shared_ptr<WeightPlace>,
                                       std::shared_ptr<PackedWeight>, int64_t>>& weights,
          int threads, int64_t request_bytes, ReadCounters& counters) {
  check_threads(threads);
  require(request_bytes > 0, "reads must have a size");
  std::vector<WeightLoad> loads;
  for (const auto& [place, weight, panel] : weights) {
    require(weight->format == place->format && weight->k == place->k && panel >= 0 &&
                panel <= panels(weight->n) - panels(place->n),
            "load: the weight is of another shape");
    loads.push_back({place, weight, panel});
  }
  nb::gil_scoped_release release;
  load_weights(loads, threads, request_bytes, &check_signals, counters);
}

}  // namespace
}  // namespace strata

void bind_stream(nb::module_& m) {
  using namespace strata;
  nb::exception<ReadError>(m, "ReadError", PyExc_RuntimeError);
  nb::class_<ReadCounters>(m, "ReadCounters")
      .def(nb::init<>())
      .def_prop_ro("wanted", [](const ReadCounters& c) { return c.wanted.load(); })
      .def_prop_ro("from_disk", [](const ReadCounters& c) { return c.from_disk.load(); })
      .def_prop_ro("reads", [](const ReadCounters& c) { return c.reads.load(); })
      .def_prop_ro("reading_s", [](const ReadCounters& c) { return c.busy.seconds(); });
  nb::class_<WeightFile>(m, "WeightFile")
      .def("__init__",
           [](WeightFile* self, const std::string& path, uint64_t device, uint64_t inode,
              int64_t size, int64_t mtime_ns, bool direct, bool drop_behind) {
             new (self) WeightFile(path, {device, inode, size, mtime_ns}, direct, drop_behind);
           },
           "path"_a, "device"_a, "inode"_a, "size"_a, "mtime_ns"_a, "direct"_a, "drop_behind"_a)
      .def_prop_ro("direct", &WeightFile::direct)
      .def_prop_ro("cached_bytes", &WeightFile::cached_bytes);
  nb::class_<WeightPlace>(m, "WeightPlace")
      .def(nb::new_(&make_place), "file"_a, "offset"_a, "format"_a, "n"_a, "k"_a, "storage"_a = 0,
           "stored_width"_a = 0, "first_column"_a = 0, "factors"_a = nb::none(),
           "run"_a = 0, "step"_a = 0)
      .def_prop_ro("panel_bytes", &WeightPlace::panel_bytes)
      .def_prop_ro("panels", [](const WeightPlace& p) { return panels(p.n); })
      .def_prop_ro("format", [](const WeightPlace& p) { return static_cast<int>(p.format); })
      .def_prop_ro("input_form", [](const WeightPlace& p) { return input_form(p.format); });
  nb::class_<FileRows>(m, "FileRows")
      .def(nb::init<std::shared_ptr<const WeightPlace>, std::shared_ptr<ReadCounters>>(),
           "place"_a, "counters"_a)
      .def_prop_ro("row_bytes", &FileRows::row_bytes)
      .def("attach",
           [](FileRows& t, std::shared_ptr<RowCache> cache, int64_t table) {
             require(table >= 0 && table < (int64_t{1} << 20) && t.n < RowCache::kMostRows &&
                         t.row_bytes() <= cache->row_bytes(),
                     "rows: the cache is for others");
             t.attach(std::move(cache), table);
           },
           "cache"_a, "table"_a,
           "Looks there first, as table number so-and-so; not while a step runs.");
  nb::class_<RowCache>(m, "RowCache")
      .def(nb::new_([](int64_t bytes, int64_t row_bytes) {
             require(bytes >= 0 && row_bytes > 0, "rows: a cache has room, and rows have bytes");
             return std::make_shared<RowCache>(bytes, row_bytes);
           }),
           "bytes"_a, "row_bytes"_a)
      .def_prop_ro("rows", &RowCache::rows)
      .def_prop_ro("nbytes", &RowCache::nbytes)
      .def_prop_ro("hits", &RowCache::hits);
  nb::class_<Readers>(m, "Readers")
      .def(nb::new_([](int threads, int64_t scratch_each, int64_t ring_bytes) {
             check_threads(threads);
             require(scratch_each >= 0 && ring_bytes >= 0, "readers: negative sizes");
             return std::make_shared<Readers>(threads, scratch_each,
                                              Stream::most_under_way(ring_bytes));
           }),
           "threads"_a, "scratch_each"_a, "ring_bytes"_a)
      .def_static("scratch_bytes", &Readers::scratch_bytes, "threads"_a, "each"_a)
      .def_prop_ro("counters", [](const Readers& r) -> const ReadCounters& { return r.counters; })
      .def_prop_ro("waited_s", [](const Readers& r) { return r.queue.times().waited_s; })
      .def_prop_ro("idle_s", [](const Readers& r) { return r.queue.times().idle_s; })
      .def_prop_ro("fetching_s", [](const Readers& r) { return r.queue.times().fetching_s; });
  nb::class_<ExpertMatrix>(m, "ExpertMatrix")
      .def(nb::new_(&make_expert_matrix), "places"_a, "experts"_a, "n"_a, "k"_a)
      .def_prop_ro("format", [](const ExpertMatrix& e) { return static_cast<int>(e.format()); })
      .def_prop_ro("input_form", [](const ExpertMatrix& e) { return input_form(e.format()); });
  nb::class_<ExpertCache>(m, "ExpertCache")
      .def(nb::new_([](const ExpertLayers& layers, int64_t slots, int64_t request_bytes,
                       std::shared_ptr<Readers> readers, int64_t ahead, double decay,
                       int64_t sure) {
             require_decay(decay);
             require(slots > 0 && slots < (int64_t{1} << 31) && request_bytes > 0,
                     "experts: there must be slots, and reads have a size");
             return std::make_shared<ExpertCache>(make_layers(layers), slots, request_bytes,
                                                  std::move(readers), ahead, decay, sure);
           }),
           "layers"_a, "slots"_a, "request_bytes"_a, "readers"_a, "ahead"_a = 0,
           "decay"_a = DecayingFrequency::kDecay, "sure"_a = 0)
      .def_prop_ro("nbytes", &ExpertCache::nbytes)
      .def_prop_ro("slots", &ExpertCache::slots)
      .def_prop_ro("ahead", &ExpertCache::ahead)
      .def_prop_ro("decay", &ExpertCache::decay)
      .def_prop_ro("sure", &ExpertCache::sure)
      .def("resize",
           [](ExpertCache& c, int64_t slots, int64_t ahead, double decay, int64_t sure) {
             require_decay(decay);
             c.resize(slots, ahead, decay, sure);
           },
           "slots"_a, "ahead"_a = 0, "decay"_a = DecayingFrequency::kDecay, "sure"_a = 0,
           nb::call_guard<nb::gil_scoped_release>(),
           "So many slots from now on, for what is foreseen and for what is sure to be needed; not "
           "while a step runs.")
      .def("read_by", &ExpertCache::read_by, "readers"_a, "Others read from now on.")
      .def_prop_ro("hits", [](const ExpertCache& c) { return c.counts().hits.load(); })
      .def_prop_ro("misses", [](const ExpertCache& c) { return c.counts().misses.load(); })
      .def_prop_ro("needed_bytes", [](const ExpertCache& c) { return c.counts().needed.load(); })
      .def_prop_ro("read_bytes", [](const ExpertCache& c) { return c.counts().read.load(); })
      .def("scores", &ExpertCache::scores, "What uses so far are worth, of each expert.")
      .def("begin_with", &ExpertCache::begin_with, "scores"_a,
           nb::call_guard<nb::gil_scoped_release>(),
           "Those are here from now on that were worth most to another cache.")
      .def_prop_ro("begun_with", [](const ExpertCache& c) { return c.counts().begun_with.load(); })
      .def_prop_ro("foreseen", [](const ExpertCache& c) { return c.counts().foreseen.load(); })
      .def_prop_ro("right", [](const ExpertCache& c) { return c.counts().right.load(); })
      .def_prop_ro("begun", [](const ExpertCache& c) { return c.counts().begun.load(); })
      .def_prop_ro("ahead_bytes", [](const ExpertCache& c) { return c.counts().ahead.load(); })
      .def_prop_ro("wasted_bytes", [](const ExpertCache& c) { return c.counts().wasted.load(); })
      .def("record", &ExpertCache::record, "on"_a,
           "Writes down the visits from now on, or no longer; not while a step runs.")
      .def_prop_ro("visits",
                   [](const ExpertCache& c) {
                     std::vector<VisitTuple> out;
                     for (const Visit& v : c.visits()) {
                       out.emplace_back(v.layer, v.rows, v.experts, v.uses);
                     }
                     return out;
                   },
                   "Of each visit: the layer, rows, experts, and how many choices fell on each.")
      .def_prop_ro("routes",
                   [](const ExpertCache& c) {
                     std::vector<std::tuple<int, int64_t, std::vector<int32_t>>> out;
                     for (const auto& r : c.routes()) out.emplace_back(r.layer, r.rows, r.chosen);
                     return out;
                   },
                   "Of each visit: the layer, rows, and what each row chose, by row.");
  m.def("replay_experts",
        [](std::vector<int32_t> experts, const std::vector<VisitTuple>& of, int64_t slots,
           const std::string& policy, int64_t counted, double decay,
           const std::vector<int64_t>& uses, int64_t sure) {
          Visits visits{std::move(experts), {}};
          for (const auto& [layer, rows, chosen, choices] : of) {
            visits.all.push_back({layer, rows, chosen, choices});
          }
          require_decay(decay);
          require(slots > 0 && sure >= 0, "replay: slots");
          visits.check();
          nb::gil_scoped_release release;
          const auto by = make_policy(policy, visits, slots, decay, uses);
          const Replayed done = replay(visits, slots, sure, counted, *by);
          return std::make_tuple(done.hits, done.misses);
        },
        "experts"_a, "visits"_a, "slots"_a, "policy"_a, "counted"_a = 0,
        "decay"_a = DecayingFrequency::kDecay, "uses"_a = std::vector<int64_t>{}, "sure"_a = 0,
        "Hits and misses of a cache of experts on recorded visits, under a policy; `sure` slots are for "
        "what the next layer is sure to need.");
  m.def("expert_memory",
        [](const ExpertLayers& layers, int64_t request_bytes) {
          require(request_bytes > 0, "reads must have a size");
          const std::vector<ExpertMatrices> made = make_layers(layers);
          return std::make_tuple(ExpertCache::slot_bytes(made),
                                 ExpertCache::scratch_bytes(made, request_bytes));
        },
        "layers"_a, "request_bytes"_a,
        "Bytes of a slot for any of these experts, and of scratch for each thread that reads.");
  nb::class_<Stream>(m, "Stream")
      .def(nb::new_([](const std::vector<std::vector<std::vector<RangeTuple>>>& tracks,
                       int64_t ring_bytes, std::shared_ptr<Readers> readers) {
             return std::make_shared<Stream>(make_tracks(tracks), ring_bytes, std::move(readers));
           }),
           "tracks"_a, "ring_bytes"_a, "readers"_a)
      .def("begin_sweep",
           [](Stream& s, const std::vector<int>& order) {
             require(!order.empty(), "stream: a sweep of nothing");
             for (int t : order) {
               require(t >= 0 && t < static_cast<int>(s.tracks().size()), "stream: no such track");
             }
             nb::gil_scoped_release release;
             s.begin_sweep(order);
           },
           "order"_a)
      .def_prop_ro("ring_bytes", [](const Stream& s) { return s.ring_bytes(); })
      .def_prop_ro("used_bytes", &Stream::used_bytes);
  m.def("stream_memory",
        [](const std::vector<std::vector<std::vector<RangeTuple>>>& tracks) {
          const std::vector<Track> made = make_tracks(tracks);
          int64_t most = 0;
          for (const Track& track : made) {
            for (const Tile& tile : track) most = std::max(most, tile_bytes(tile));
          }
          return std::make_tuple(most, Stream::scratch_bytes(made));
        },
        "tracks"_a,
        "Bytes of ring buffer that the largest tile takes, and of scratch for each thread that "
        "reads.");
  m.def("packing_bytes",
        [](int format, int64_t k) -> int64_t {
          const auto f = static_cast<Format>(format);
          const FormatInfo* info = format_info(f);
          require(info != nullptr && k > 0 && k % info->elements == 0, "weight: no such row");
          return packing_bytes(static_cast<int64_t>(packed_bytes(f, kPanel, k)));
        },
        "format"_a, "k"_a,
        "Bytes of the panels that a thread packs together of a weight that streams.");
  m.def("give_back_memory",
        [] {
#ifdef __GLIBC__
          malloc_trim(0);
#endif
        },
        "Returns what the allocator keeps of freed memory to the system, where it can.");
  m.def("share_freed_memory",
        [] {
#ifdef __GLIBC__
          if (std::getenv("MALLOC_ARENA_MAX") == nullptr) mallopt(M_ARENA_MAX, 2);
#endif
        },
        "Has threads that start from now on share two of the allocator's arenas: each would keep "
        "what it freed for itself.");
  m.def("load_weights", &load, "weights"_a, "threads"_a, "request_bytes"_a, "counters"_a,
        "Reads whole weights from their places into packed form.");
  m.def("set_read_faults",
        [](int64_t delay_us, int64_t seed, int64_t fail_at, int64_t cut_at, int64_t die_at,
           int64_t slow_times) {
          set_read_faults({delay_us, seed, fail_at, cut_at, die_at, slow_times});
        },
        "delay_us"_a = 0, "seed"_a = 0, "fail_at"_a = 0, "cut_at"_a = 0, "die_at"_a = 0,
        "slow_times"_a = 0,
        "For tests: delays and faults of reads from now on; see ReadFaults.");
}
