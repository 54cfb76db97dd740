"""Families that are known and not built, each with its reason, by `general.architecture` of GGUF
files or `architectures` of config.json."""

from __future__ import annotations

from collections.abc import Mapping

_BOTH = "it is one half of an encoder and a decoder"
_ENCODER = "an encoder's layers are read for embeddings and ranks, not to continue texts"
_DRAFTS = "it guesses for another model, whose keys it reads"
_PICTURES = "its texts are of pictures, which are not read"
_SINE = "its positions are sines, which are added to the embedding"
_SHARED = "one block of attention is used by several layers, with additions of each"
_GGUF_ALONE = "it is read from GGUF files alone"
_COMPRESSED = (
    "several keys are compressed into one, an indexer chooses among those, and first layers choose "
    "experts by a token's hash"
)
_HEARS = "texts are answered with sounds"

REFUSED: Mapping[str, str] = {
    "deepseek4": _COMPRESSED,
    "AXK2ForCausalLM": "norms are gated by products of low rank",
    "AriaTextForCausalLM": "its experts have layouts of their own",
    "BeamForCausalLM": "queries without a rotation grow with their positions",
    "BioGptForCausalLM": "a scaled embedding in OPT's layers is not built",
    "BltForCausalLM": "it reads bytes in patches, which another model cuts",
    "CTRLLMHeadModel": _SINE,
    "CohereCompassForCausalLM": "kinds of layers have rotations of their own",
    "CpmAntForCausalLM": "distances are learned, in buckets",
    "DeepseekV4ForCausalLM": _COMPRESSED,
    "DiffLlamaForCausalLM": "attention is the difference of two",
    "DogeForCausalLM": "masks follow from values",
    "Emu3ForCausalLM": "its answers are pictures, too",
    "FuyuForCausalLM": "pictures are rows among the tokens",
    "GPTNeoXJapaneseForCausalLM": "only the last layer has a bias behind its attention",
    "Gemma4AssistantForCausalLM": _DRAFTS,
    "Gemma4UnifiedAssistantForCausalLM": _DRAFTS,
    "GitForCausalLM": _PICTURES,
    "GotOcr2ForConditionalGeneration": _PICTURES,
    "Glm5NextForConditionalGeneration": _GGUF_ALONE,
    "InklingForCausalLM": "scores have learned parts that follow distances",
    "Inkling2ForCausalLM": "scores have learned parts that follow distances",
    "JetMoeForCausalLM": "a router chooses heads of attention",
    "Kolibri1ForCausalLM": "its bias chooses experts by what is under the sigmoid",
    "Lfm3ForCausalLM": "windows and gates of heads beside LFM2's convolutions are not built",
    "LongcatFlashForCausalLM": "layers have two attentions, and experts that give back what they "
    "are given",
    "MossTranscribeDiarizeForConditionalGeneration": "it hears, and its texts are what it heard",
    "MllamaForConditionalGeneration": "some of its layers attend to pictures",
    "MllamaForCausalLM": "some of its layers attend to pictures",
    "ModernBertDecoderForCausalLM": "ModernBERT is read as an encoder alone",
    "OpenAIGPTLMHeadModel": "norms are after the sums",
    "PaliGemmaForConditionalGeneration": "a prompt is seen in both directions",
    "Phi4MultimodalForCausalLM": "weights for pictures and sounds are added to those for texts",
    "Qwen4ExpForCausalLM": _GGUF_ALONE,
    "Qwen4ExpForConditionalGeneration": _GGUF_ALONE,
    "RecurrentGemmaForCausalLM": "its recurrence (RG-LRU) is not built",
    "ReformerModelWithLMHead": "attention goes by hashes",
    "RwkvForCausalLM": "the recurrence of RWKV 4 is not built; versions 6 and 7 are read from GGUF",
    "XGLMForCausalLM": _SINE,
    "XLNetLMHeadModel": "texts are continued in any order",
    "ZambaForCausalLM": _SHARED,
    "Zamba2ForCausalLM": _SHARED,
    "ZayaForCausalLM": "attention works in a compressed and convolved space",
    "xLSTMForCausalLM": "its recurrence (mLSTM) is not built",
    **{
        f"{name}ForCausalLM": _BOTH
        for name in (
            *("Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall"),
            *("MBart", "Marian", "Mvp", "PLBart", "Pegasus", "ProphetNet", "TrOCR", "Whisper"),
        )
    },
    **{
        f"{name}ForCausalLM": _ENCODER
        for name in (
            *("BigBird", "Camembert", "Data2VecText", "Electra", "Ernie", "MegatronBert"),
            *("RemBert", "RoCBert", "RoFormer", "Roberta", "RobertaPreLayerNorm", "XLMRoberta"),
            *("XLMRobertaXL", "Xmod"),
        )
    },
    **dict.fromkeys(("BertLMHeadModel", "BertGenerationDecoder", "XLMWithLMHeadModel"), _ENCODER),
    **{f"{name}ForCausalLM": _HEARS for name in ("Moshi", "Musicgen", "MusicgenMelody")},
}
