// Runs the plain kernels and those of this processor's instruction set on the same inputs and
// compares every bit of what they write. Built by -DSTRATA_KERNELS_ONLY=ON, where the plain ones
// round a multiply-add once, as the instructions do.
//   compare_kernels <instruction set> <file>
// The file, of little-endian int64 but for the bytes: a number of codebooks (format, size, bytes),
// then a number of products (format, n, k, rows, bytes of the weight's rows, [rows, k] floats).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/step_kernels.h"

namespace {

using namespace strata;

int64_t g_compared = 0;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

// Bytes aligned to a cache line that no kernel has written to.
class Room {
 public:
  explicit Room(size_t bytes)
      : size_(bytes),
        data_(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {
    if (data_ == nullptr) fail("no memory");
    std::memset(data_.get(), 0xEE, (bytes + 127) / 64 * 64);
  }
  uint8_t* bytes() { return data_.get(); }
  float* floats() { return reinterpret_cast<float*>(data_.get()); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  size_t size_;
  std::unique_ptr<uint8_t, Free> data_;
};

void same(Room& plain, Room& other, const std::string& what) {
  for (size_t i = 0; i < plain.size(); ++i) {
    if (plain.bytes()[i] != other.bytes()[i]) {
      fail(what + ": differs at byte " + std::to_string(i) + " of " +
           std::to_string(plain.size()));
    }
  }
  ++g_compared;
}

std::vector<float> draw(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = normal(random);
  return out;
}

class Input {
 public:
  explicit Input(const char* path) : file_(path, std::ios::binary) {}
  int64_t number() {
    int64_t n = 0;
    take(&n, sizeof n);
    return n;
  }
  template <class T> std::vector<T> array(int64_t count) {
    std::vector<T> out(static_cast<size_t>(count));
    take(out.data(), out.size() * sizeof(T));
    return out;
  }

 private:
  void take(void* to, size_t bytes) {
    file_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    if (!file_) fail("the file ends too soon");
  }
  std::ifstream file_;
};

struct Product {
  const FormatInfo& info;
  int64_t n, k, rows;
  std::vector<uint8_t> weight;
  std::vector<float> x;
  int64_t rest = 0;   // 1: activations of two planes
};

// Packs, quantises and multiplies with one table; out has packed bytes, activations and results.
void run_product(const KernelTable& kernels, const Product& p, Room& packed, Room& acts,
                 Room& out, Room& narrow) {
  pack(kernels, p.info.format, p.weight.data(), p.n, p.k, packed.bytes(), 0, panels(p.n));
  MatmulArgs a{};
  a.weight = packed.bytes();
  a.n = p.n;
  a.k = p.k;
  a.out = out.floats();
  a.out_stride = p.n;
  a.fetch_end = panels(p.n);
  if (p.info.act == ActKind::q8) {
    const auto stride = static_cast<int64_t>(act_row_bytes(ActKind::q8, p.k));
    for (int64_t r = 0; r < p.rows; ++r) {
      kernels.quantize_blocks(p.x.data() + r * p.k, p.k, 0, p.k / kActBlock,
                              acts.bytes() + (r << p.rest) * stride,
                              p.rest ? acts.bytes() + (2 * r + 1) * stride : nullptr);
    }
    a.acts = acts.bytes();
    a.act_stride = stride;
    a.rest = p.rest;
  } else {
    a.acts = reinterpret_cast<const uint8_t*>(p.x.data());
    a.act_stride = p.k * static_cast<int64_t>(sizeof(float));
    if (p.info.act == ActKind::bf16 && kernels.narrow_row != nullptr) {
      a.narrow_stride = static_cast<int64_t>(act_row_bytes(ActKind::bf16, p.k));
      for (int64_t r = 0; r < p.rows; ++r) {
        kernels.narrow_row(p.x.data() + r * p.k, p.k,
                           reinterpret_cast<uint16_t*>(narrow.bytes() + r * a.narrow_stride));
      }
      a.narrow = narrow.bytes();
    }
  }
  const std::vector<float> bias = draw(p.n, 1), residual = draw(p.rows * p.n, 2);
  a.bias = bias.data();
  a.residual = residual.data();
  a.residual_stride = p.n;
  Room scratch(static_cast<size_t>(matmul_scratch_floats(p.k)) * sizeof(float));
  kernels.matmul(p.info.format)(a, 0, p.rows << p.rest, 0, panels(p.n), scratch.floats());
}

void compare_product(const KernelTable& plain, const KernelTable& other, const Product& p) {
  const std::string what = "format " + std::to_string(static_cast<int>(p.info.format)) + " [" +
                           std::to_string(p.n) + ", " + std::to_string(p.k) + "] times " +
                           std::to_string(p.rows) + (p.rest ? " rows of two planes" : " rows");
  const size_t packed = packed_bytes(p.info.format, p.n, p.k);
  const size_t acts = p.info.act == ActKind::q8
                          ? static_cast<size_t>(p.rows << p.rest) * act_row_bytes(ActKind::q8, p.k)
                          : 0;
  const size_t out = static_cast<size_t>(p.rows * p.n) * sizeof(float);
  const size_t narrow = static_cast<size_t>(p.rows) * act_row_bytes(ActKind::bf16, p.k);
  Room packed1(packed), packed2(packed), acts1(acts), acts2(acts), out1(out), out2(out);
  Room narrow1(narrow), narrow2(narrow);
  run_product(plain, p, packed1, acts1, out1, narrow1);
  run_product(other, p, packed2, acts2, out2, narrow2);
  same(packed1, packed2, what + ", packed");
  same(acts1, acts2, what + ", activations");
  same(out1, out2, what + ", result");
}

// Rows of `n` through every function of rows.
void compare_rows(const StepKernels& plain, const StepKernels& other, int64_t n) {
  std::vector<float> a = draw(n, 3), b = draw(n, 4), w = draw(n, 5);
  for (float& x : a) x *= 6;
  a[0] = -100;   // where exp underflows
  const auto both = [&](std::string what, const std::string& which, auto call) {
    Room one(static_cast<size_t>(n) * sizeof(float)), two(one.size());
    call(plain, one.floats());
    call(other, two.floats());
    what.append(" ").append(which).append(" of ").append(std::to_string(n));
    same(one, two, what);
  };
  both("rms_norm", "", [&](const StepKernels& s, float* out) {
    s.rms_norm(a.data(), w.data(), 1e-5f, n, out);
  });
  both("layer_norm", "", [&](const StepKernels& s, float* out) {
    s.layer_norm(a.data(), w.data(), b.data(), 1e-5f, n, out);
  });
  both("layer_norm", "without bias", [&](const StepKernels& s, float* out) {
    s.layer_norm(a.data(), w.data(), nullptr, 1e-5f, n, out);
  });
  for (int f = 0; f < kActivations; ++f) {
    const auto activation = static_cast<Activation>(f);
    const std::string number = std::to_string(f);
    both("activation", number, [&](const StepKernels& s, float* out) {
      s.activate(activation, a.data(), n, out);
    });
    both("glu", number, [&](const StepKernels& s, float* out) {
      s.glu(activation, a.data(), b.data(), n, out);
    });
  }
  both("multiply", "", [&](const StepKernels& s, float* out) {
    s.multiply(a.data(), b.data(), n, out);
  });
  both("clamp", "", [&](const StepKernels& s, float* out) {
    s.clamp(a.data(), -0.5f, 0.7f, n, out);
  });
  both("xielu", "", [&](const StepKernels& s, float* out) {
    s.xielu(a.data(), 1.3f, 1.2f, 0.5f, -1e-6f, n, out);
  });
  both("rms_norm", "without weight", [&](const StepKernels& s, float* out) {
    s.rms_norm(a.data(), nullptr, 1e-5f, n, out);
  });
  both("add", "", [&](const StepKernels& s, float* out) { s.add(a.data(), b.data(), n, out); });
  both("scale", "", [&](const StepKernels& s, float* out) { s.scale(a.data(), 0.3f, n, out); });
  both("softcap", "", [&](const StepKernels& s, float* out) { s.softcap(a.data(), 30, n, out); });
  const float* rows[] = {b.data(), a.data(), w.data()};
  const std::vector<float> taps = draw(3 * n, 9);
  both("short_conv", "", [&](const StepKernels& s, float* out) {
    s.short_conv(rows, taps.data(), b.data(), n, 3, n, out);
  });
  both("grouped_rms_norm", "", [&](const StepKernels& s, float* out) {
    s.grouped_rms_norm(a.data(), w.data(), 1e-5f, n, n, out);
  });
  both("l2_norm", "", [&](const StepKernels& s, float* out) {
    s.l2_norm(a.data(), 1e-6f, 0.5f, n, n, out);
  });
  both("group_sum", "", [&](const StepKernels& s, float* out) {
    s.group_sum(a.data(), n, n, out);
  });
  both("softmax", "", [&](const StepKernels& s, float* out) {
    s.softmax(a.data(), n, n, out);
  });
  both("decay", "", [&](const StepKernels& s, float* out) {
    s.decay(a.data(), b.data(), 1, n, out);
  });
  both("mix", "", [&](const StepKernels& s, float* out) {
    s.mix(taps.data(), w.data(), n < 3 ? 1 : 3, n, out);
  });
  both("match_rms", "", [&](const StepKernels& s, float* out) {
    s.match_rms(a.data(), b.data(), 1e-5f, n, out);
  });
  const int64_t streams = std::min<int64_t>(n, 4);
  if (n >= streams * streams) {
    both("sinkhorn", "", [&](const StepKernels& s, float* out) {
      std::fill(out, out + n, 0.0f);
      s.sinkhorn(a.data(), streams, 3, 1e-6f, out);
    });
  }
  both("cutoff", "", [&](const StepKernels& s, float* out) {
    s.cutoff(a.data(), 0.5f, n > 1, n, out);
  });
  // Every recurrence over a state of four rows, whose columns are one row's; x is read as keys too.
  for (int kind = 0; kind < kScans && n >= 16; ++kind) {
    const std::vector<float> state = draw(4 * 16, 11);
    std::vector<float> after(4 * 16);
    ScanArgs scan{};
    for (const float*& in : scan.in) in = a.data();
    for (const float*& parameter : scan.parameters) parameter = b.data();
    scan.before = state.data();
    scan.after = after.data();
    scan.rows = scan.heads = scan.key_heads = 1;
    scan.k_dim = 4;
    scan.v_dim = n;
    both("scan", std::to_string(kind), [&](const StepKernels& s, float* out) {
      std::fill(out, out + n, 0.0f);
      scan.out = out;
      const std::vector<float> wide = draw(4 * n, 12);
      if (kind == static_cast<int>(Scan::ssm_channels)) scan.parameters[0] = wide.data();
      s.scan[kind](scan, 0, 0, 16);
    });
  }
  for (const bool interleaved : {false, true}) {
    if (n < 2) continue;
    both("rope", interleaved ? "interleaved" : "", [&](const StepKernels& s, float* out) {
      s.rope(a.data(), b.data(), w.data(), n / 2, n, interleaved, out);
    });
  }
}

// The window that is a chunk of positions.
constexpr int64_t kChunk = 250;

// Keys and values of a sequence longer than a split, then attention of its last rows.
void compare_attention(const StepKernels& plain, const StepKernels& other, KvTypes types,
                       const KvShape& shape, int64_t window, float softcap) {
  constexpr int64_t kHeads = 6, kKvHeads = 2, kRows = 3, kPast = 600;
  constexpr int64_t kSplits = (kPast + kRows + kKvBlock * kSplitBlocks - 1) /
                              (kKvBlock * kSplitBlocks);
  constexpr int64_t kBlocks = (kPast + kRows + kKvBlock - 1) / kKvBlock;
  const int64_t head_bytes = kv_head_bytes(types, shape);
  const std::string what = "KV type " + std::to_string(static_cast<int>(types.k)) + ":" +
                           std::to_string(static_cast<int>(types.v)) + ", keys of " +
                           std::to_string(shape.k_dim) + ", values of " +
                           std::to_string(shape.v_dim) + (shape.v_in_k ? " in keys" : "") +
                           ", window " + std::to_string(window);
  std::vector<int32_t> table;
  for (int64_t i = 0; i < kBlocks; ++i) table.push_back(static_cast<int32_t>(i * 7 % kBlocks));
  const std::vector<float> q = draw(kRows * kHeads * shape.k_dim, 6);
  const std::vector<float> k = draw((kPast + kRows) * kKvHeads * shape.k_dim, 7);
  const std::vector<float> v = draw((kPast + kRows) * kKvHeads * shape.v_dim, 8);
  static constexpr float slopes[kHeads] = {0.5f, 0.25f, 0.1f, 0.0f, 1.0f, 0.01f};
  static constexpr float sinks[kHeads] = {0.0f, -3.0f, 5.0f, 0.5f, 20.0f, -90.0f};
  const auto kv_bytes = static_cast<size_t>(kBlocks * kKvHeads * head_bytes);
  const auto out_bytes = static_cast<size_t>(kRows * kHeads * shape.v_dim) * sizeof(float);
  const auto partials_bytes =
      static_cast<size_t>(kRows * kHeads * kSplits * partial_floats(shape.v_dim)) * sizeof(float);
  const auto run = [&](const StepKernels& s, Room& kv, Room& out, Room& merged) {
    std::memset(kv.bytes(), 0, kv.size());
    AttentionArgs a{};
    a.q = q.data();
    a.q_stride = kHeads * shape.k_dim;
    a.out_stride = kHeads * shape.v_dim;
    a.out = out.floats();
    a.kv = kv.bytes();
    a.block_stride = kKvHeads * head_bytes;
    a.head_bytes = head_bytes;
    a.value_at = kv_key_bytes(types.k, shape.k_dim);
    a.keys = &s.of(types.k);
    a.values = &s.of(types.v);
    a.table = table.data();
    a.heads = kHeads;
    a.kv_heads = kKvHeads;
    a.shape = shape;
    a.past = kPast;
    a.window = window;
    a.chunked = window == kChunk;
    // A window both ways, where nothing else does.
    a.seen = window > 0 && softcap == 0.0f && !a.chunked ? kPast + kRows : 0;
    a.scale = 0.125f;
    a.softcap = softcap;
    // Heads with slopes and sinks, where nothing else tells the cases apart.
    if (window == 0 && softcap == 0.0f) {
      a.slopes = slopes;
      a.sinks = sinks;
    }
    const AttendKernels& kernels = s.attention(types, shape);
    for (int64_t p = 0; p < kPast + kRows; ++p) {
      uint8_t* block = kv.bytes() + table[static_cast<size_t>(p / kKvBlock)] * a.block_stride;
      for (int64_t h = 0; h < kKvHeads; ++h) {
        const int64_t head = p * kKvHeads + h;
        uint8_t* to = block + h * head_bytes;
        a.keys->store_key(k.data() + head * shape.k_dim, shape.k_dim, p % kKvBlock, to);
        if (shape.v_in_k) continue;
        a.values->store_value(v.data() + head * shape.v_dim, shape.v_dim, p % kKvBlock,
                              to + a.value_at);
      }
    }
    Room scratch(static_cast<size_t>(attention_scratch_floats(shape)) * sizeof(float));
    Room partials(partials_bytes);
    for (int64_t h = 0; h < kKvHeads; ++h) {
      kernels.attend(a, h, 0, kRows, scratch.floats());
      for (int64_t split = 0; split < kSplits; ++split) {
        kernels.attend_split(a, h, 0, kRows, split, split, kSplits, partials.floats(),
                             scratch.floats());
      }
    }
    a.out = merged.floats();
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t h = 0; h < kHeads; ++h) {
        s.merge_splits(a, row, h, kSplits, partials.floats(), scratch.floats());
      }
    }
  };
  Room kv1(kv_bytes), kv2(kv_bytes), out1(out_bytes), out2(out_bytes);
  Room merged1(out_bytes), merged2(out_bytes);
  run(plain, kv1, out1, merged1);
  run(other, kv2, out2, merged2);
  same(kv1, kv2, what + ", stored");
  same(out1, out2, what + ", attention");
  same(merged1, merged2, what + ", merged splits");
  same(out1, merged1, what + ", splits apart");
}

const StepKernels* step_kernels_of(const std::string& name) {
#if defined(__aarch64__)
  if (name == "neon") return step_kernels_neon();
#elif defined(__x86_64__)
  if (name == "avx2") return step_kernels_avx2();
  if (name == "avx512") return step_kernels_avx512();
#endif
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) fail("usage: compare_kernels <instruction set> <file>");
  const KernelTable* other = select_kernels(argv[1]);
  const StepKernels* other_step = step_kernels_of(argv[1]);
  if (other == nullptr || other_step == nullptr) {
    fail(std::string("no kernels for ") + argv[1] + " here");
  }
  const KernelTable& plain = *select_kernels("scalar");
  Input input(argv[2]);
  std::vector<std::vector<uint8_t>> codebooks;
  for (int64_t left = input.number(); left > 0; --left) {
    const auto format = static_cast<Format>(input.number());
    codebooks.push_back(input.array<uint8_t>(input.number()));
    if (!set_grid(format, codebooks.back().data(), codebooks.back().size())) fail("a codebook");
  }
  for (int64_t left = input.number(); left > 0; --left) {
    const FormatInfo* info = format_info(static_cast<Format>(input.number()));
    if (info == nullptr) fail("a format without kernels");
    const int64_t n = input.number(), k = input.number(), rows = input.number();
    std::vector<uint8_t> weight = input.array<uint8_t>(n * k / info->elements * info->bytes);
    Product product{*info, n, k, rows, std::move(weight), input.array<float>(rows * k)};
    compare_product(plain, *other, product);
    if (info->act != ActKind::q8) continue;
    product.rest = 1;
    compare_product(plain, *other, product);
  }
  for (const int64_t n : {1, 7, 16, 31, 64, 100, 576}) {
    compare_rows(*step_kernels_scalar(), *other_step, n);
  }
  for (int type = 0; type < kKvTypes; ++type) {
    for (const KvShape& shape : {KvShape{16, 16, false}, KvShape{24, 24, false},
                                 KvShape{64, 64, false}, KvShape{80, 80, false},
                                 KvShape{24, 40, false}, KvShape{72, 33, true}}) {
      const auto kept = static_cast<KvType>(type);
      const KvTypes types{kept, kept};
      compare_attention(*step_kernels_scalar(), *other_step, types, shape, 0, 0);
      compare_attention(*step_kernels_scalar(), *other_step, types, shape, 37, 20);
      compare_attention(*step_kernels_scalar(), *other_step, types, shape, 37, 0);
      compare_attention(*step_kernels_scalar(), *other_step, types, shape, kChunk, 0);
    }
    for (int other = 0; other < kKvTypes; ++other) {
      const KvTypes types{static_cast<KvType>(type), static_cast<KvType>(other)};
      if (other == type) continue;
      compare_attention(*step_kernels_scalar(), *other_step, types, {24, 40, false}, 0, 0);
      compare_attention(*step_kernels_scalar(), *other_step, types, {80, 80, false}, 37, 20);
    }
  }
  std::printf("%lld comparisons, all bits the same\n", static_cast<long long>(g_compared));
}
