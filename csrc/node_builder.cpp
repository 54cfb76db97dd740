// Each node with its operands: numbers, widths, rows and forms are checked before it is made.
#include "node_builder.h"

#include <algorithm>

namespace strata {
namespace {

Floats floats(const std::optional<Array1<float>>& a) {
  return a ? Floats(a->data(), a->data() + a->size()) : Floats();
}

SharedFloats shared(const std::optional<Array1<float>>& a) {
  if (!a) return {};
  const auto held = std::make_shared<const Array1<float>>(*a);
  return {{held, held->data()}};
}

}  // namespace

int64_t NodeBuilder::value(int64_t width, int64_t f32, int64_t q8, bool selected, int64_t planes) {
  require(width > 0, "value: width must be positive");
  require(f32 >= Value::kExternal && f32 % 64 <= 0, "value: misaligned f32 offset");
  require(q8 >= Value::kNone && q8 % 64 <= 0, "value: misaligned q8 offset");
  require(planes == 1 || planes == 2, "value: one plane of int8 or two");
  values_.push_back({width, f32, q8, selected, planes});
  return static_cast<int64_t>(values_.size()) - 1;
}

void NodeBuilder::embed(RowTablePtr table, float scale, int64_t out) {
  require(at(out).width == table->k, "embed: width of the table and of the output differ");
  vocabulary_ = vocabulary_ < 0 ? table->n : std::min(vocabulary_, table->n);
  list_.add(make_embed(std::move(table), scale, f32_value(out)));
}

void NodeBuilder::ngrams(RowTablePtr table, int64_t out, int64_t layer,
                         std::vector<uint64_t> multipliers, std::vector<int64_t> starts,
                         std::vector<int64_t> sizes, int64_t end) {
  const auto lookups = static_cast<int64_t>(starts.size());
  const auto before = static_cast<int64_t>(multipliers.size()) - 1;
  require(before >= 1 && lookups >= 1 && lookups <= kMostLookups && lookups % before == 0 &&
              sizes.size() == starts.size(),
          "ngrams: as many lookups for every length");
  for (size_t i = 0; i < starts.size(); ++i) {
    require(starts[i] >= 0 && sizes[i] >= 1 && sizes[i] <= table->n && starts[i] <= table->n - sizes[i],
            "ngrams: rows that the table does not have");
  }
  require(layer >= 0 && end >= 0 && end < kMostTokens && !at(out).selected &&
              at(out).width == lookups * table->k,
          "ngrams: no such layer or rows");
  vocabulary_ = vocabulary_ < 0 ? kMostTokens : std::min(vocabulary_, kMostTokens);
  recurrent_.push_back({layer, before});
  list_.add(make_ngrams({std::move(table), f32_value(out), layer, lookups / before,
                         std::move(multipliers), std::move(starts), std::move(sizes), end}));
}

void NodeBuilder::add_positions(int64_t x, RowTablePtr table, int64_t offset, int64_t out) {
  require(at(out).width == table->k && at(x).width == table->k,
          "add_positions: widths differ");
  max_positions_ = table->n - offset;
  scratch_ = std::max(scratch_, table->k);
  list_.add(make_add_positions(f32_value(x), std::move(table), offset, f32_value(out)));
}

void NodeBuilder::select(int64_t x, int64_t out) {
  require(at(x).width == at(out).width, "select: widths differ");
  require(!at(x).selected && at(out).selected, "select: rows must go from tokens to out");
  list_.add(make_select(f32_value(x), f32_value(out)));
}

void NodeBuilder::row(int function, int64_t a, int64_t out, std::optional<int64_t> b,
                      std::optional<Array1<float>> weight, std::optional<Array1<float>> bias,
                      int activation, float number, int64_t group) {
  list_.add(make_row(row_spec(function, a, out, b, weight, bias, activation, number, group)));
}

void NodeBuilder::matmul(int64_t x, const std::vector<Part>& parts,
                         std::optional<std::tuple<int, int64_t>> glu, int tiles, int64_t narrow,
                         int64_t groups) {
  require(!parts.empty() && parts.size() <= 3, "matmul: one to three weights");
  require(groups > 0 && (groups == 1 || !glu), "matmul: groups");
  MatmulSpec s{at(x), {}, {}, groups};
  StreamedProduct product{glu.has_value(), tiles, {}};
  for (const auto& [operand, out, bias, residual] : parts) {
    const auto* packed = std::get_if<WeightPtr>(&operand);
    require((packed != nullptr) == (tiles == 0), "matmul: parts are all packed or all streamed");
    const WeightPlacePtr place = packed ? nullptr : std::get<WeightPlacePtr>(operand);
    const Format format = packed ? (*packed)->format : place->format;
    const int64_t n = packed ? (*packed)->n : place->n;
    const int64_t k = packed ? (*packed)->k : place->k;
    const ActKind kind = format_info(format)->act;
    require(kind == ActKind::q8 ? s.x.q8 != Value::kNone : s.x.f32 != Value::kNone,
            "matmul: the input is not kept in the form that the weight needs");
    require(s.parts.empty() || format_info(s.parts[0].format)->act == kind,
            "matmul: parts want different inputs");
    require(k * groups == s.x.width && at(out).width == n, "matmul: shapes differ");
    require(groups == 1 || (n % (groups * kPanel) == 0 && k % kActBlock == 0),
            "matmul: groups of " + std::to_string(n / groups) + " by " + std::to_string(k) +
                " are no multiples of " + std::to_string(kPanel) + " by " +
                std::to_string(kActBlock));
    require(at(out).selected == s.x.selected, "matmul: rows differ");
    require(!bias || static_cast<int64_t>(bias->size()) == n, "matmul: bias width");
    MatmulPart part{packed ? *packed : nullptr, format, n, f32_value(out), floats(bias), {}};
    if (residual) {
      require(at(*residual).width == n, "matmul: residual width");
      part.residual = f32_value(*residual);
    }
    s.parts.push_back(std::move(part));
    int64_t scratch = matmul_scratch_floats(k);
    if (place) scratch += (packing_bytes(place->panel_bytes()) + 3) / 4;
    scratch_ = std::max(scratch_, scratch);
    product.parts.push_back(place);
  }
  if (glu) {
    require(parts.size() == 2 && s.parts[0].n == s.parts[1].n,
            "matmul: glu takes two parts of one width");
    const auto& [activation, out] = *glu;
    s.glu = row_spec(static_cast<int>(RowFunction::glu), std::get<1>(parts[0]), out,
                     std::get<1>(parts[1]), {}, {}, activation, 0.0f, 0);
  }
  if (format_info(s.parts[0].format)->act == ActKind::bf16) {
    require(narrow >= 0 && narrow % 64 == 0, "matmul: no place for the input as bf16");
    s.narrow = narrow;
    narrow_.push_back({s.x, narrow});
    list_.add(make_narrow(s.x, narrow));
  }
  if (tiles == 0) {
    list_.add(make_matmul(std::move(s)));
  } else {
    list_.add_streamed(make_matmul(std::move(s)), tiles);
    streamed_.push_back(std::move(product));
  }
}

void NodeBuilder::attach(std::shared_ptr<Stream> stream, int track) {
  require(track >= 0 && track < static_cast<int>(stream->tracks().size()), "stream: no track");
  const Track& tiles = stream->tracks()[static_cast<size_t>(track)];
  size_t next = 0;
  for (const StreamedProduct& product : streamed_) {
    std::vector<int64_t> covered(product.parts.size(), 0);
    for (int i = 0; i < product.tiles; ++i, ++next) {
      require(next < tiles.size(), "stream: too few tiles");
      const Tile& tile = tiles[next];
      for (const TileRange& r : tile) {
        require(r.part >= 0 && r.part < static_cast<int>(product.parts.size()) &&
                    r.place == product.parts[static_cast<size_t>(r.part)],
                "stream: a tile is of another weight");
        int64_t& at = covered[static_cast<size_t>(r.part)];
        require(r.panel0 == at && r.panel1 > at, "stream: panels must follow each other");
        at = r.panel1;
      }
      require(!product.glu || (tile.size() == 2 && tile[0].part == 0 && tile[1].part == 1 &&
                               tile[0].panel0 == tile[1].panel0 &&
                               tile[0].panel1 == tile[1].panel1 && tile[0].panel0 % 2 == 0),
              "stream: glu takes the same columns of both parts, from an even panel on");
    }
    for (size_t i = 0; i < covered.size(); ++i) {
      require(covered[i] == panels(product.parts[i]->n), "stream: panels are missing");
    }
  }
  require(next == tiles.size(), "stream: too many tiles");
  stream_ = std::move(stream);
  track_ = track;
}

void NodeBuilder::heads(const std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>>& parts,
                        int64_t out, int64_t count) {
  require(count > 0 && !parts.empty(), "heads: none");
  HeadsSpec s{{}, f32_value(out), count};
  int64_t width = 0;
  for (const auto& [x, stride, start, part] : parts) {
    require(stride >= 0 && start >= 0 && part > 0 &&
                (count - 1) * stride + start + part <= at(x).width,
            "heads: past the end of a row");
    require(at(x).selected == s.out.selected && at(x).f32 != s.out.f32, "heads: rows differ");
    s.parts.push_back({f32_value(x), stride, start, part});
    width += part;
  }
  require(width * count == s.out.width, "heads: widths differ");
  list_.add(make_heads(std::move(s)));
}

void NodeBuilder::rope(int64_t x, int64_t out, std::shared_ptr<RopeTable> table, int64_t head_dim,
                       bool interleaved) {
  require(at(x).width == at(out).width && at(x).width % head_dim == 0 &&
              2 * table->half() <= head_dim,
          "rope: widths differ");
  require(!at(x).selected && !at(out).selected, "rope: the rows of a step have positions");
  list_.add(make_rope({f32_value(x), f32_value(out), head_dim, interleaved, std::move(table)}));
}

void NodeBuilder::attention(int64_t q, std::optional<int64_t> k, std::optional<int64_t> v,
                            int64_t out, int64_t layer, int64_t heads, int64_t kv_heads,
                            int64_t k_dim, int64_t v_dim, float scale, int64_t window,
                            float softcap, bool causal, bool chunked,
                            const std::optional<Array1<float>>& slopes,
                            const std::optional<Array1<float>>& sinks, std::optional<int> call,
                            int64_t beginning, std::optional<int64_t> q_beginning, int64_t read,
                            std::optional<int64_t> chosen) {
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0,
          "attention: KV heads have as many heads each");
  require(k_dim > 0 && v_dim > 0 && at(q).width == heads * k_dim &&
              at(out).width == heads * v_dim && (!k || at(*k).width == kv_heads * k_dim) &&
              (!v || at(*v).width == kv_heads * v_dim) && (k || !v),
          "attention: widths differ");
  require(window >= 0 && layer >= 0, "attention: negative window or layer");
  AttentionSpec s{f32_value(q), {}, {}, f32_value(out), layer, heads, kv_heads, k_dim, v_dim,
                  window, scale, softcap, causal, chunked, floats(slopes), floats(sinks)};
  require(s.slopes.empty() || static_cast<int64_t>(s.slopes.size()) == heads,
          "attention: a slope for each head");
  require(s.sinks.empty() || static_cast<int64_t>(s.sinks.size()) == heads,
          "attention: a sink for each head");
  require(beginning >= 0 && beginning <= kKvBlock * kSplitBlocks &&
              (beginning > 0) == q_beginning.has_value() &&
              (beginning == 0 || (window > 0 && causal && !chunked)),
          "attention: a beginning is seen beside a window that looks back, by a query of its own");
  s.beginning = beginning;
  if (q_beginning) {
    require(at(*q_beginning).width == heads * k_dim, "attention: widths differ");
    s.q_beginning = f32_value(*q_beginning);
  }
  require(read == 0 || (read > 3 && window == 0 && causal && s.slopes.empty()),
          "attention: blocks are chosen of all positions before a row, four or more");
  s.read = read;
  require(!chosen || (read == 0 && window == 0 && causal),
          "attention: keys are chosen of all positions before a row");
  if (chosen) s.chosen = f32_value(*chosen);
  if (k) s.k = f32_value(*k);
  if (v) s.v = f32_value(*v);
  attention_.push_back(
      {layer, kv_heads, k_dim, v_dim, window, beginning, k.has_value(), v.has_value(), read > 0});
  scratch_ = std::max(scratch_, attention_scratch_floats({k_dim, v_dim, !v}));
  require(!call || *call >= 0, "attention: negative call");
  add_attention(list_, std::move(s), call);
}

void NodeBuilder::top_keys(int64_t q, int64_t k, int64_t weights, int64_t out, int64_t layer,
                           int64_t block, int64_t local) {
  const int64_t k_dim = at(k).width;
  const int64_t heads = weights < 0 ? at(q).width / k_dim : at(weights).width;
  const int64_t choices = weights < 0 ? heads : 1;
  require(layer >= 0, "top_keys: negative layer");
  require(at(q).width == heads * k_dim, "top_keys: widths differ");
  require(block >= 1 && local >= 0 && at(out).width % (choices * block) == 0,
          "top_keys: no whole blocks");
  require(!at(q).selected && !at(out).selected, "top_keys: the rows of a step have positions");
  AttentionSpec s{f32_value(q), f32_value(k), {}, f32_value(out), layer, heads, 1, k_dim, 1,
                  0, 1.0f, 0.0f};
  attention_.push_back({layer, 1, k_dim, 1, 0, 0, true, false, false});
  scratch_ = std::max(scratch_, weigh_keys_scratch_floats(heads, k_dim));
  const Value by = weights < 0 ? Value{} : f32_value(weights);
  add_top_keys(list_, {std::move(s), by, f32_value(out), choices, block, local, weights >= 0});
}

void NodeBuilder::short_conv(int64_t x, int64_t out, int64_t layer, const Array1<float>& weight,
                             const std::optional<Array1<float>>& bias) {
  const int64_t width = at(x).width;
  const auto taps = static_cast<int64_t>(weight.size()) / width;
  require(at(out).width == width && static_cast<int64_t>(weight.size()) == taps * width,
          "short_conv: widths differ");
  require(taps >= 2 && taps <= kMostTaps,
          "short_conv: 2 to " + std::to_string(kMostTaps) + " taps, not " + std::to_string(taps));
  require(layer >= 0 && !at(x).selected && !at(out).selected && at(x).f32 != at(out).f32,
          "short_conv: no such layer or rows");
  require(!bias || static_cast<int64_t>(bias->size()) == width, "short_conv: bias width");
  recurrent_.push_back({layer, (taps - 1) * width});
  list_.add(make_short_conv(
      {f32_value(x), f32_value(out), layer, taps, floats(weight), floats(bias)}));
}

void NodeBuilder::scan(int kind, const std::vector<int64_t>& in, int64_t out, int64_t layer,
                       int64_t heads, int64_t key_heads, int64_t k_dim, int64_t v_dim, bool tiled,
                       bool by_key, const std::vector<Array1<float>>& parameters) {
  require(kind >= 0 && kind < kScans, "scan: no such kind");
  const auto what = static_cast<Scan>(kind);
  require(layer >= 0 && heads > 0 && key_heads > 0 && heads % key_heads == 0 && k_dim > 0 &&
              k_dim <= kMostKeys && v_dim > 0 && v_dim < (int64_t{1} << 30) / (heads * k_dim),
          "scan: impossible heads");
  const int64_t keys = key_heads * k_dim, all = heads * k_dim, values = heads * v_dim;
  std::vector<int64_t> widths, floats_of;
  switch (what) {
    case Scan::ssm_head:
      widths = {values, heads, keys, keys};
      floats_of = {heads, heads};
      break;
    case Scan::ssm_channels:
      require(heads == 1, "scan: channels are columns of one head");
      widths = {values, values, keys, keys};
      floats_of = {k_dim * v_dim, v_dim};
      break;
    case Scan::gated_delta: widths = {keys, keys, values, by_key ? all : heads, heads}; break;
    case Scan::wkv6:
      widths = {all, all, values, all};
      floats_of = {all};
      break;
    case Scan::wkv7: widths = {all, all, all, values, all, all}; break;
    case Scan::linear:
      require(key_heads == heads, "scan: keys of every head");
      widths = {all, all, values};
      if (by_key) widths.push_back(all);
      else floats_of = {heads};
      break;
  }
  const bool square = what == Scan::wkv6 || what == Scan::wkv7;
  require(!square || k_dim == v_dim, "scan: keys and values differ");
  require(in.size() == widths.size() && parameters.size() == floats_of.size(),
          "scan: number of operands");
  ScanSpec s{what, {}, f32_value(out), layer, heads, key_heads, k_dim, v_dim, tiled, by_key, {}};
  require(s.out.width == values && !s.out.selected, "scan: width of the output");
  for (size_t i = 0; i < in.size(); ++i) {
    s.in.push_back(f32_value(in[i]));
    require(s.in[i].width == widths[i] && !s.in[i].selected && s.in[i].f32 != s.out.f32,
            "scan: widths differ");
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    require(static_cast<int64_t>(parameters[i].size()) == floats_of[i], "scan: parameters");
    s.parameters.push_back(floats(parameters[i]));
  }
  recurrent_.push_back({layer, heads * k_dim * v_dim});
  list_.add(make_scan(std::move(s)));
}

void NodeBuilder::grouped(int function, int64_t x, int64_t out, int64_t group, float eps,
                          float factor, const std::optional<Array1<float>>& weight) {
  require(function >= 0 && function <= static_cast<int>(GroupFunction::softmax), "group function");
  GroupSpec s{static_cast<GroupFunction>(function), f32_value(x), f32_value(out), group, eps,
              factor, floats(weight)};
  const auto given = static_cast<int64_t>(s.weight.size());
  const int64_t each = s.function == GroupFunction::sum ? group : 1;
  require(group > 0 && s.x.width % group == 0 && s.x.width == s.out.width * each &&
              s.x.selected == s.out.selected,
          "group: widths differ");
  require(given == (s.function == GroupFunction::grouped_rms_norm ? s.x.width
                    : s.function == GroupFunction::decay          ? s.x.width / group
                                                                  : 0),
          "group: weights");
  list_.add(make_group(std::move(s)));
}

void NodeBuilder::mix(int64_t x, int64_t weights, int64_t out, int64_t streams) {
  require(streams > 0 && at(x).width % streams == 0 && at(weights).width % streams == 0 &&
              at(out).width == at(weights).width / streams * (at(x).width / streams) &&
              at(x).selected == at(out).selected && at(weights).selected == at(out).selected,
          "mix: widths differ");
  list_.add(make_streams({StreamsFunction::mix, f32_value(x), f32_value(weights), f32_value(out),
                          streams}));
}

void NodeBuilder::match_rms(int64_t x, int64_t like, int64_t out, float least) {
  require(at(x).width % at(like).width == 0 && at(x).width == at(out).width &&
              at(x).selected == at(out).selected && at(like).selected == at(out).selected,
          "match_rms: widths differ");
  list_.add(make_streams({StreamsFunction::match_rms, f32_value(x), f32_value(like),
                          f32_value(out), 0, least}));
}

void NodeBuilder::sinkhorn(int64_t x, int64_t out, int64_t streams, int64_t iterations, float eps) {
  require(streams > 0 && streams <= 1024 && at(x).width == streams * streams &&
              at(out).width == at(x).width && at(x).selected == at(out).selected &&
              at(out).f32 != at(x).f32 && iterations > 0,
          "sinkhorn: no matrix of streams");
  list_.add(make_streams({StreamsFunction::sinkhorn, f32_value(x), std::nullopt, f32_value(out),
                          streams, eps, iterations}));
}

void NodeBuilder::cutoff(int64_t x, int64_t out, float deviations, int64_t spare) {
  require(at(x).width == at(out).width && at(x).selected == at(out).selected && spare >= 0 &&
              spare < at(x).width,
          "cutoff: widths differ");
  list_.add(make_streams({StreamsFunction::cutoff, f32_value(x), std::nullopt, f32_value(out),
                          spare, deviations}));
}

void NodeBuilder::experts(int64_t x, int64_t logits, int64_t out,
                          const std::optional<ExpertsOperand>& gate, const ExpertsOperand& up,
                          const ExpertsOperand& down, const std::optional<Array1<float>>& selection,
                          int64_t ffn, int64_t top_k, int scoring, bool select_logits,
                          bool softmax_chosen, bool renormalise, float least_sum, float scale,
                          int64_t groups, int64_t groups_kept, bool group_top2, int activation,
                          int clamp, float limit, float up_limit, bool weigh_input, float jitter,
                          int64_t shared_by, int64_t narrow, int64_t work) {
  require(shared_by > 0 && at(logits).width % shared_by == 0, "experts: none for some choices");
  const int64_t count = at(logits).width / shared_by;
  const int64_t width = at(x).width;
  require(at(out).width == width && at(out).f32 != at(x).f32 && !at(x).selected &&
              !at(logits).selected && !at(out).selected,
          "experts: rows or widths differ");
  require(ffn > 0 && top_k > 0 && top_k <= count && groups > 0 && at(logits).width % groups == 0 &&
              groups_kept > 0 && groups_kept <= groups,
          "experts: so many cannot be chosen");
  require(scoring >= 0 && scoring <= static_cast<int>(Scoring::sparsemixer) && clamp >= 0 &&
              clamp <= static_cast<int>(Clamp::situ) && activation >= 0 &&
              activation <= static_cast<int>(Activation::relu2),
          "experts: no such function");
  require(work >= 0 && work % 64 == 0, "experts: no workspace");
  require(!selection || static_cast<int64_t>(selection->size()) == at(logits).width,
          "experts: selection");
  ExpertMatrices cached;
  const auto part = [&](const ExpertsOperand& from, int64_t n, int64_t k) {
    const auto& [operand, bias, scales] = from;
    const auto* packed = std::get_if<WeightPtr>(&operand);
    const ExpertMatrixPtr places =
        packed ? nullptr : std::get<std::shared_ptr<ExpertMatrix>>(operand);
    const Format format = packed ? (*packed)->format : places->format();
    require(packed ? (*packed)->k == k && (*packed)->n == count * panels(n) * kPanel
                   : places->k == k && places->n == n && places->experts == count,
            "experts: shapes differ");
    require(!bias || static_cast<int64_t>(bias->size()) == count * n, "experts: bias width");
    require(!scales || static_cast<int64_t>(scales->size()) == count, "experts: scales");
    if (places) cached.push_back(places);
    return ExpertsPart{packed ? *packed : nullptr, format, shared(bias), shared(scales)};
  };
  ExpertsSpec s{at(x), f32_value(logits), f32_value(out), count, ffn, top_k, {}, {}, {},
                floats(selection), static_cast<Scoring>(scoring), select_logits, softmax_chosen,
                renormalise, weigh_input, group_top2, least_sum, scale, limit, up_limit, jitter, shared_by,
                groups, groups_kept, static_cast<Activation>(activation), static_cast<Clamp>(clamp),
                Value::kNone, work};
  if (gate) s.gate = part(*gate, ffn, width);
  s.up = part(up, ffn, width);
  s.down = part(down, width, ffn);
  require(cached.empty() || cached.size() == (gate ? 3u : 2u),
          "experts: all are packed, or none");
  const ActKind act = format_info(s.up.format)->act;
  require(act == ActKind::q8 ? s.x.q8 != Value::kNone : s.x.f32 != Value::kNone,
          "experts: the input is not kept in the form that the weights need");
  require(!s.gate || format_info(s.gate->format)->act == act,
          "experts: gate and up want different inputs");
  scratch_ = std::max(scratch_, s.scratch_floats());
  experts_.push_back(s);
  if (act == ActKind::bf16) {
    require(narrow >= 0 && narrow % 64 == 0, "experts: no place for the input as bf16");
    s.narrow = narrow;
    narrow_.push_back({s.x, narrow});
    list_.add(make_narrow(s.x, narrow));
  }
  ExpertNodes nodes = make_experts(std::move(s));
  list_.add(std::move(nodes.route));
  const int64_t before = list_.nodes();
  list_.add(std::move(nodes.gate_up));
  if (nodes.narrow) list_.add(std::move(nodes.narrow));
  list_.add(std::move(nodes.down));
  if (cached.empty()) return;
  if (foresight_ && !foresight_->choice) {
    require(foresight_->x.width == width && foresight_->router->n == experts_.back().logits.width &&
                shared_by == 1,
            "foresee: another router");
    foresight_->choice = experts_.back();
  }
  list_.in_turns(list_.nodes() - before, nodes.turns);
  cached_.push_back({std::move(nodes.turns), std::move(cached)});
}

void NodeBuilder::foresee(int64_t x, int norm, const std::optional<Array1<float>>& weight,
                          const std::optional<Array1<float>>& shift, double epsilon,
                          WeightPtr router, const std::optional<Array1<float>>& bias) {
  require(!foresight_ && cached_.empty() && norm >= 0 && norm <= 2, "foresee: what comes first");
  const Value& from = f32_value(x);
  const auto fits = [](const Floats& f, int64_t n) {
    return f.empty() || static_cast<int64_t>(f.size()) == n;
  };
  auto f = std::make_shared<Foresight>(
      Foresight{from, static_cast<Foresight::Norm>(norm), floats(weight), floats(shift), epsilon,
                std::move(router), floats(bias), {}, nullptr});
  require(f->router->k == from.width && !from.selected && fits(f->weight, from.width) &&
              fits(f->shift, from.width) && fits(f->bias, f->router->n),
          "foresee: widths differ");
  scratch_ = std::max(scratch_, foresee_scratch(from.width, f->router->n));
  list_.add(make_foresee(f));
  list_.add(make_ask(f));
  foresight_ = std::move(f);
}

void NodeBuilder::attach_experts(std::shared_ptr<ExpertCache> cache, int first) {
  require(first >= 0 && static_cast<size_t>(first) + cached_.size() <= cache->layers().size(),
          "experts: no such layer");
  for (size_t i = 0; i < cached_.size(); ++i) {
    const int layer = first + static_cast<int>(i);
    require(cache->layers()[static_cast<size_t>(layer)] == cached_[i].matrices,
            "experts: the layer is another one");
    cached_[i].turns->attach(cache, layer);
    if (i == 0 && foresight_ && foresight_->choice) {
      foresight_->layer = layer;
      foresight_->cache = cache;
    }
  }
  experts_attached_ = true;
}

const Value& NodeBuilder::at(int64_t id) const {
  require(id >= 0 && id < static_cast<int64_t>(values_.size()), "no such value");
  return values_[static_cast<size_t>(id)];
}

const Value& NodeBuilder::f32_value(int64_t id) const {
  require(at(id).f32 != Value::kNone, "value is not kept as f32");
  return at(id);
}

RowSpec NodeBuilder::row_spec(int function, int64_t a, int64_t out, std::optional<int64_t> b,
                              const std::optional<Array1<float>>& weight,
                              const std::optional<Array1<float>>& bias, int activation,
                              float number, int64_t group) {
  require(function >= 0 && function < kRowFunctions, "row function");
  require(activation >= 0 && activation < kActivations, "activation");
  RowSpec s{static_cast<RowFunction>(function), f32_value(a), {}, at(out), floats(weight),
            floats(bias), static_cast<Activation>(activation), number, group};
  require(s.a.width == s.out.width && s.a.selected == s.out.selected, "row: shapes differ");
  const auto given = static_cast<int64_t>(s.weight.size());
  const bool multiplies = s.function == RowFunction::mul;
  const bool two = s.function == RowFunction::glu || s.function == RowFunction::add ||
                   (multiplies && given == 0);
  require(two == b.has_value(), "row: number of operands");
  if (b) {
    s.b = f32_value(*b);
    require((multiplies ? s.a.width % s.b.width == 0 : s.b.width == s.a.width) &&
                s.b.selected == s.a.selected,
            "row: shapes differ");
  }
  const bool norm = s.function == RowFunction::rms_norm || s.function == RowFunction::layer_norm;
  require(norm == (group > 0) && (!norm || s.a.width % group == 0), "row: norm width");
  require(s.bias.empty() || (norm && s.bias.size() == s.weight.size()), "row: norm bias");
  bool fits = given == 0;
  switch (s.function) {
    case RowFunction::rms_norm:
    case RowFunction::layer_norm: fits = given == 0 || given == group; break;
    case RowFunction::mul: fits = given == 0 || s.a.width % given == 0; break;
    case RowFunction::shift: fits = given == s.a.width; break;
    case RowFunction::clamp: fits = given == 2; break;
    case RowFunction::xielu: fits = given == 4; break;
    case RowFunction::position_scale:
      fits = given == 3 && s.weight[0] > 0 && !s.a.selected;
      break;
    default: break;
  }
  require(fits, "row: weights");
  scratch_ = std::max(scratch_, s.out.width + 64);
  return s;
}

}  // namespace strata
