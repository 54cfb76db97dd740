"""Names that people type, of models whose files are on the hub, and the repositories they are in.

Repositories of GGUF files in usual quantisations, of the publisher where there are any. The first
size of a family is what its name alone stands for.
"""

from __future__ import annotations

import re

_FAMILIES: dict[str, dict[str, str]] = {
    "deepseek-r1": {
        "8b": "unsloth/DeepSeek-R1-0528-Qwen3-8B-GGUF",
        "1.5b": "unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF",
        "7b": "unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF",
        "14b": "unsloth/DeepSeek-R1-Distill-Qwen-14B-GGUF",
        "32b": "unsloth/DeepSeek-R1-Distill-Qwen-32B-GGUF",
        "70b": "unsloth/DeepSeek-R1-Distill-Llama-70B-GGUF",
        "671b": "unsloth/DeepSeek-R1-GGUF",
    },
    "deepseek-v2": {"lite": "deepseek-ai/DeepSeek-V2-Lite-Chat"},
    "deepseek-v3": {"671b": "unsloth/DeepSeek-V3-GGUF"},
    "embeddinggemma": {"300m": "ggml-org/embeddinggemma-300M-GGUF"},
    "gemma2": {
        "9b": "bartowski/gemma-2-9b-it-GGUF",
        "2b": "bartowski/gemma-2-2b-it-GGUF",
        "27b": "bartowski/gemma-2-27b-it-GGUF",
    },
    "gemma3": {
        "4b": "unsloth/gemma-3-4b-it-GGUF",
        "270m": "unsloth/gemma-3-270m-it-GGUF",
        "1b": "unsloth/gemma-3-1b-it-GGUF",
        "12b": "unsloth/gemma-3-12b-it-GGUF",
        "27b": "unsloth/gemma-3-27b-it-GGUF",
    },
    "gemma3n": {
        "e4b": "unsloth/gemma-3n-E4B-it-GGUF",
        "e2b": "unsloth/gemma-3n-E2B-it-GGUF",
    },
    "gemma4": {"26b-a4b": "unsloth/gemma-4-26B-A4B-it-GGUF"},
    "glm-4.5": {"air": "unsloth/GLM-4.5-Air-GGUF"},
    "gpt-oss": {
        "20b": "ggml-org/gpt-oss-20b-GGUF",
        "120b": "ggml-org/gpt-oss-120b-GGUF",
    },
    "granite4": {
        "h-tiny": "ibm-granite/granite-4.0-h-tiny-GGUF",
        "h-1b": "ibm-granite/granite-4.0-h-1b-GGUF",
    },
    "lfm2": {
        "1.2b": "LiquidAI/LFM2-1.2B-GGUF",
        "8b-a1b": "LiquidAI/LFM2-8B-A1B-GGUF",
    },
    "llama2": {
        "7b": "TheBloke/Llama-2-7B-Chat-GGUF",
        "13b": "TheBloke/Llama-2-13B-chat-GGUF",
        "70b": "TheBloke/Llama-2-70B-Chat-GGUF",
    },
    "llama3": {
        "8b": "bartowski/Meta-Llama-3-8B-Instruct-GGUF",
        "70b": "bartowski/Meta-Llama-3-70B-Instruct-GGUF",
    },
    "llama3.1": {
        "8b": "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
        "70b": "bartowski/Meta-Llama-3.1-70B-Instruct-GGUF",
        "405b": "bartowski/Meta-Llama-3.1-405B-Instruct-GGUF",
    },
    "llama3.2": {
        "3b": "bartowski/Llama-3.2-3B-Instruct-GGUF",
        "1b": "bartowski/Llama-3.2-1B-Instruct-GGUF",
    },
    "llama3.3": {"70b": "bartowski/Llama-3.3-70B-Instruct-GGUF"},
    "llama4": {"scout": "unsloth/Llama-4-Scout-17B-16E-Instruct-GGUF"},
    "mistral": {"7b": "bartowski/Mistral-7B-Instruct-v0.3-GGUF"},
    "mistral-nemo": {"12b": "bartowski/Mistral-Nemo-Instruct-2407-GGUF"},
    "mistral-small": {"24b": "bartowski/Mistral-Small-24B-Instruct-2501-GGUF"},
    "mixtral": {
        "8x7b": "TheBloke/Mixtral-8x7B-Instruct-v0.1-GGUF",
        "8x22b": "bartowski/Mixtral-8x22B-v0.1-GGUF",
    },
    "nomic-embed-text": {"v1.5": "nomic-ai/nomic-embed-text-v1.5-GGUF"},
    "olmo2": {
        "7b": "allenai/OLMo-2-1124-7B-Instruct-GGUF",
        "13b": "allenai/OLMo-2-1124-13B-Instruct-GGUF",
    },
    "phi3": {"mini": "microsoft/Phi-3-mini-4k-instruct-gguf"},
    "phi3.5": {"3.8b": "bartowski/Phi-3.5-mini-instruct-GGUF"},
    "phi4": {"14b": "bartowski/phi-4-GGUF"},
    "phi4-mini": {"3.8b": "unsloth/Phi-4-mini-instruct-GGUF"},
    "qwen2.5": {
        "7b": "bartowski/Qwen2.5-7B-Instruct-GGUF",
        "0.5b": "bartowski/Qwen2.5-0.5B-Instruct-GGUF",
        "1.5b": "bartowski/Qwen2.5-1.5B-Instruct-GGUF",
        "3b": "bartowski/Qwen2.5-3B-Instruct-GGUF",
        "14b": "bartowski/Qwen2.5-14B-Instruct-GGUF",
        "32b": "bartowski/Qwen2.5-32B-Instruct-GGUF",
        "72b": "bartowski/Qwen2.5-72B-Instruct-GGUF",
    },
    "qwen2.5-coder": {
        "7b": "bartowski/Qwen2.5-Coder-7B-Instruct-GGUF",
        "1.5b": "bartowski/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        "14b": "bartowski/Qwen2.5-Coder-14B-Instruct-GGUF",
        "32b": "bartowski/Qwen2.5-Coder-32B-Instruct-GGUF",
    },
    "qwen3": {
        "8b": "unsloth/Qwen3-8B-GGUF",
        "0.6b": "unsloth/Qwen3-0.6B-GGUF",
        "1.7b": "unsloth/Qwen3-1.7B-GGUF",
        "4b": "unsloth/Qwen3-4B-GGUF",
        "14b": "unsloth/Qwen3-14B-GGUF",
        "32b": "unsloth/Qwen3-32B-GGUF",
        "30b-a3b": "unsloth/Qwen3-30B-A3B-GGUF",
        "30b": "unsloth/Qwen3-30B-A3B-GGUF",
        "235b-a22b": "unsloth/Qwen3-235B-A22B-GGUF",
        "235b": "unsloth/Qwen3-235B-A22B-GGUF",
    },
    "qwen3-coder": {"30b": "unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF"},
    "qwen3.5": {"0.8b": "unsloth/Qwen3.5-0.8B-GGUF"},
    "qwen3.6": {"35b-a3b": "unsloth/Qwen3.6-35B-A3B-GGUF"},
    "qwq": {"32b": "Qwen/QwQ-32B-GGUF"},
    "smollm2": {
        "135m": "bartowski/SmolLM2-135M-Instruct-GGUF",
        "360m": "bartowski/SmolLM2-360M-Instruct-GGUF",
        "1.7b": "bartowski/SmolLM2-1.7B-Instruct-GGUF",
    },
    "smollm3": {"3b": "unsloth/SmolLM3-3B-GGUF"},
    "tinyllama": {"1.1b": "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF"},
}

_QUANT = re.compile(
    r"[-:.]((?:ud-)?i?q\d[a-z0-9]*(?:_[a-z0-9]+)*|bf16|fp?16|fp?32|mxfp4|tq[12]_0)$", re.IGNORECASE
)
_BESIDE = re.compile(r"[-:](?:latest|instruct|it|chat|text|gguf)(?=$|[-:])", re.IGNORECASE)


def known_names() -> list[str]:
    """As people write them: ``llama3.2:3b``, the name alone meaning the first size."""
    return [f"{family}:{size}" for family, sizes in _FAMILIES.items() for size in sizes]


def split_name(name: str) -> tuple[str, str | None]:
    """The model in a name without punctuation and such words as ``instruct``, to be compared, and
    the quantisation at its end: ``llama3.2:1b-instruct-q8_0`` is ``llama321b`` in ``q8_0``."""
    match = _QUANT.search(name)
    quant = None
    if match is not None:
        name, quant = name[: match.start()], re.sub(r"^fp(?=\d)", "f", match[1].lower())
    return re.sub(r"[^a-z0-9]", "", _BESIDE.sub("", name).lower()), quant


def known_repository(name: str) -> str | None:
    """The repository that ``name``, as ``split_name`` gives it, is usually downloaded from."""
    return _REPOSITORIES.get(name)


def _repositories() -> dict[str, str]:
    found: dict[str, str] = {}
    for family, sizes in _FAMILIES.items():
        for size, repo in sizes.items():
            found.setdefault(split_name(family)[0], repo)
            found[split_name(f"{family}:{size}")[0]] = repo
    return found


_REPOSITORIES = _repositories()
