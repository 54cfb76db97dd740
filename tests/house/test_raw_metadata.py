"""What a file says is read in one place a room, which checks it; nothing else touches it raw."""

from __future__ import annotations

import ast

from support.source_trees import SOURCE, trees

# Room or module -> why it may look into `metadata`.
READERS = {
    "formats": "makes it and checks what the formats themselves need",
    "models/keys.py": "hyperparameters of GGUF and config.json, by name, type and range",
    "decode/defaults.py": "how a model's authors draw, each value checked as a parameter",
    "text/load.py": "hands it to text/gguf_keys.py",
    "text/gguf_keys.py": "vocabularies of GGUF",
    "hub/remote.py": "passes it on, of a header that lies elsewhere",
    "synth": "writes models",
    "quantizer/sources.py": "carries all keys; mixes.py takes numbers, whatever they are",
    "quantizer/importance.py": "keys of an importance matrix, by type",
    "cli/synth.py": "copies the vocabulary of the built-in model",
}
# Functions that give the values of a foreign JSON file, and who may call them.
PARSERS = {
    "parse_object": ("formats", "hub"),
    "read_object": ("formats", "models/embedding.py", "decode/defaults.py"),
    "read_object_if_there": ("text/huggingface.py",),
    "read_template": ("text/huggingface.py",),
}


def _may(module: str, places: object) -> bool:
    return any(module == place or module.startswith(f"{place}/") for place in places)  # type: ignore[attr-defined]


def test_metadata_is_read_where_it_is_checked() -> None:
    for path, tree in trees().items():
        module = path.relative_to(SOURCE).as_posix()
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "metadata"]
        assert not found or _may(module, READERS), f"{module}: line {found[0].lineno}"


def test_files_beside_the_weights_are_read_through_their_bounds() -> None:
    for path, tree in trees().items():
        module = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    places = PARSERS.get(alias.name)
                    assert places is None or _may(module, places), f"{module}: {alias.name}"
            if module.startswith(("text/", "models/", "formats/")):
                calls = isinstance(node, ast.Attribute) and node.attr in ("read_text", "read_bytes")
                assert not calls, f"{module}: {ast.unparse(node)}"
