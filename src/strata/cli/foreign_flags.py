"""Flags that people know from llama.cpp, Ollama and vLLM: what they are called here, and which have
no effect here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_NAMES = {
    "--temp": "--temperature",
    "--n-predict": "--max-tokens",
    "--predict": "--max-tokens",
    "--num-predict": "--max-tokens",
    "--repeat-penalty": "--repetition-penalty",
    "-s": "--seed",
    "-sys": "--system",
    "--system-prompt": "--system",
    "--ctx-size": "--context",
    "--max-model-len": "--context",
    "-np": "--parallel",
    "--max-num-seqs": "--parallel",
    "--served-model-name": "--alias",
    "-a": "--alias",
    "-j": "--json-schema",
    "-jf": "--json-schema-file",
    "--chat-template-file": "--chat-template",
    "-ctk": "--kv-type",
    "--cache-type-k": "--kv-type",
    "-ctv": "--kv-type",
    "--cache-type-v": "--kv-type",
    "--no-conversation": "--raw",
    "-no-cnv": "--raw",
}

_MODEL = ("-m", "--model", "-hf", "-hfr", "--hf-repo")

_ON_THE_PROCESSOR = "everything is computed on the processor"
_BY_THE_PLAN = "the plan chooses that, by the budget of --memory"
_ALWAYS = "it is so anyway"

# Flag: how many values it takes, and why it has no effect.
_WITHOUT_EFFECT: dict[str, tuple[int, str]] = {
    **dict.fromkeys(
        ("-ngl", "--n-gpu-layers", "--gpu-layers", "-dev", "--device", "-sm", "--split-mode"),
        (1, _ON_THE_PROCESSOR),
    ),
    **dict.fromkeys(
        ("-ts", "--tensor-split", "-mg", "--main-gpu", "-ot", "--override-tensor"),
        (1, _ON_THE_PROCESSOR),
    ),
    **dict.fromkeys(
        ("-ncmoe", "--n-cpu-moe", "--gpu-memory-utilization", "--tensor-parallel-size"),
        (1, _ON_THE_PROCESSOR),
    ),
    **dict.fromkeys(("-cmoe", "--cpu-moe", "-nkvo", "--no-kv-offload"), (0, _ON_THE_PROCESSOR)),
    **dict.fromkeys(
        ("-b", "--batch-size", "-ub", "--ubatch-size", "-tb", "--threads-batch"), (1, _BY_THE_PLAN)
    ),
    **dict.fromkeys(("--mlock", "--no-mmap", "--mmap", "--no-warmup"), (0, _BY_THE_PLAN)),
    **dict.fromkeys(("-cb", "--cont-batching", "--jinja"), (0, _ALWAYS)),
    **dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive"), (0, "no prompt is a chat")),
    **dict.fromkeys(("--color", "-co", "--no-display-prompt"), (0, _ALWAYS)),
    **dict.fromkeys(("-fa", "--flash-attn"), (0, _ALWAYS)),
}
_SWITCHED = ("-fa", "--flash-attn")


def translated(
    arguments: Sequence[str], declared: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """``arguments`` of a verb whose own flags are ``declared``, in these flags, and what was left
    out: flag to reason. A model given by a flag becomes the first argument."""
    ours: list[str] = []
    models: list[str] = []
    without: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            ours += [word, *rest]
            break
        flag, equals, value = word.partition("=")
        if not flag.startswith("-"):
            ours.append(word)
        elif flag in _MODEL and (equals or rest) and _is_model(value if equals else rest[0]):
            models.append(value if equals else rest.pop(0))
        elif flag in declared:
            ours.append(word)
            # The value of a short flag may begin with a dash, as -n -1 does.
            if flag in ("-n", "-p") and not equals and rest:
                ours.append(rest.pop(0))
        elif _NAMES.get(flag) in declared:
            ours.append(_NAMES[flag] + equals + value)
        elif flag in _WITHOUT_EFFECT:
            count, why = _WITHOUT_EFFECT[flag]
            switched = flag in _SWITCHED and rest[:1] and rest[0] in ("on", "off", "auto")
            if (count and not equals) or switched:
                del rest[:1]
            without[flag] = why
        else:
            ours.append(word)
    return [*models, *ours], without


def _is_model(value: str) -> bool:
    """Whether it is no budget, which -m names here."""
    return not value[:1].isdigit() or "/" in value or value.endswith(".gguf")
