// The logits of llama.cpp for the first tokens of one fixed sequence, for make_tiny_variants.py and bench/archs_against_llamacpp.py.
// llamacpp_logits MODEL.gguf OUT TOKENS: writes float32 [TOKENS][vocabulary] to OUT. One thread,
// float32 keys and values, no flash attention, all tokens in one batch.
#include <llama.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static int fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 4) return fail("usage: llamacpp_logits MODEL.gguf OUT TOKENS");
  const int count = std::atoi(argv[3]);
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  llama_model_params mp = llama_model_default_params();
  mp.n_gpu_layers = 0;
  llama_model* model = llama_model_load_from_file(argv[1], mp);
  if (model == nullptr) return fail("the model was not loaded");
  llama_context_params cp = llama_context_default_params();
  cp.n_ctx = 0;
  cp.n_batch = cp.n_ubatch = 256;
  cp.n_threads = cp.n_threads_batch = 1;
  cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  cp.type_k = cp.type_v = GGML_TYPE_F32;
  llama_context* context = llama_init_from_model(model, cp);
  if (context == nullptr) return fail("the context was not made");
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  llama_batch batch = llama_batch_init(count, 0, 1);
  batch.n_tokens = count;
  for (int i = 0; i < count; ++i) {
    batch.token[i] = (7 + 13 * i) % vocabulary;
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  if (llama_model_has_encoder(model) && llama_encode(context, batch) != 0) {
    return fail("llama_encode failed");
  }
  if (llama_model_has_decoder(model) && llama_decode(context, batch) != 0) {
    return fail("llama_decode failed");
  }
  std::FILE* out = std::fopen(argv[2], "wb");
  if (out == nullptr) return fail("the output cannot be written");
  for (int i = 0; i < count; ++i) {
    const float* row = llama_get_logits_ith(context, i);
    if (row == nullptr) return fail("no logits");
    std::fwrite(row, sizeof(float), static_cast<size_t>(vocabulary), out);
  }
  return std::fclose(out) == 0 ? 0 : fail("the output was not written");
}
