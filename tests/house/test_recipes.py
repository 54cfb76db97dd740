"""The recipes of CONTRIBUTING.md name every place that a change touches, and no other.

Each is followed backwards: something that is there already, and where code names it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", TEXT, re.MULTILINE))


@dataclass(frozen=True)
class Example:
    """Something that was made by ``recipe``: code and paths that name it match ``pattern``, in
    ``count`` files outside tests. ``name`` stands where the recipe has <...>; ``read`` are places
    that one only looks at."""

    recipe: str
    pattern: str
    count: int
    name: str = ""
    read: frozenset[str] = field(default_factory=frozenset)
    with_recipe: str = ""


EXAMPLES = [
    Example("a model that is another by name", r"\bYiForCausalLM\b", 2),
    Example(
        "a variation of a layer",
        r"\b(cogvlm|act_scales)\b",
        4,
        read=frozenset({"bench/archs_against_llamacpp.py", "models/experts.py"}),
    ),
    Example(
        "a model",
        r"\bgranite\b(?!-)",
        7,
        "granite",
        frozenset({"models/variants.py", "models/directories.py", "models/mixtures.py"}),
    ),
    Example(
        "a family of directories",
        r"\bStarcoder2",
        2,
        read=frozenset(
            {"models/mixtures.py", "tests/models/test_live_mixtures.py", "docs/models.md"}
        ),
    ),
    Example(
        "an Op",
        # Not where a family has it.
        r"(?<!\bb\.)\bshort_conv\b",
        11,
        read=frozenset({"csrc/kernels/simd_*.h"}),
        with_recipe="a kernel",
    ),
    # One that is made of codes and one whose codes are looked up.
    Example("a block format", r"\b(Q4_0|IQ1_M)\b", 23),
    Example(
        "a file format",
        r"\bformats[./]huggingface\b|\b(ConfigMissingError|attacks_on_huggingface)\b",
        4,
        "huggingface",
    ),
    Example("an instruction set", r"(?<![a-z])neon\b", 12, "neon"),
    Example("a pre-tokenizer", r"'deepseek-llm'", 1),
    Example("an endpoint", r"/v1/completions\b", 2, "openai"),
    Example("a tool-call format", r"\bparsers[./]mistral\b", 2, "mistral"),
    Example(
        "a known chat template",
        r"_LISTED\b",
        1,
        read=frozenset({"tools/check_template.py"}),
    ),
    Example(
        "a KV type",
        r"'q8_0'|\bkv_types import .*\bQ8_0\b|\b(KvQ8|KvType::q8_0|Q8_0 = KVType)\b",
        6,
    ),
    # The oracle, and the one that only tests have.
    Example(
        "a backend",
        r"\bbackends\.reference import\b|\bbackends/reference/backend\b|'copying'",
        2,
        "reference",
        frozenset({"backends/base.py"}),
    ),
    Example("a verb", r"\bcli[./]tokenize\b|'tokenize'", 2, "tokenize"),
]


def places(text: str) -> list[str]:
    """The paths among what stands in backticks."""
    words = chain.from_iterable(code.split() for code in re.findall(r"`([^`]+)`", text))
    paths = (w for w in words if re.fullmatch(r"[\w.<>*-]*(/[\w.<>*-]*)+|\w+\.(txt|md)", w))
    return [p for p in paths if not p.startswith(".venv")]


def found_at(place: str) -> list[Path]:
    """Files and folders of that path, which may leave out src/strata."""
    pattern = re.sub(r"<\w+>", "*", place).rstrip("/")
    return [*ROOT.glob(pattern), *(ROOT / "src" / "strata").glob(pattern)]


@cache
def code_by_path() -> dict[Path, str]:
    """Each file and what it says, without comments and docstrings."""
    folders = (ROOT / name for name in ("src", "csrc", "tools", "tests"))
    files = [
        p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".cpp", ".h")
    ]
    files.remove(Path(__file__).resolve())
    return {path: code(path) for path in (ROOT / "CMakeLists.txt", *files)}


def code(path: Path) -> str:
    text = path.read_text()
    if path.suffix != ".py":
        return re.sub(r"#.*" if path.suffix == ".txt" else r"//.*", "", text)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not is_text(s)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def is_text(statement: ast.AST) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("place", sorted(set(places(TEXT))))
def test_a_place_is_there(place: str) -> None:
    assert found_at(place)


@pytest.mark.parametrize(("word", "place"), sorted(set(re.findall(r"`(\w+)` of `(\S+?)`", TEXT))))
def test_a_place_has_what_is_said_of_it(word: str, place: str) -> None:
    (path,) = found_at(place)
    assert re.search(rf"\b{word}\b", code_by_path()[path])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.recipe)
def test_a_recipe_names_every_place(example: Example) -> None:
    touched = {
        path
        for path, text in code_by_path().items()
        if re.search(example.pattern, name(path)) or re.search(example.pattern, text)
    }
    recipe = RECIPES[example.recipe] + RECIPES.get(example.with_recipe, "")
    missing, named = set(), set()
    for place in set(places(recipe)) - example.read:
        roots = found_at(re.sub(r"<\w+>", example.name, place))
        at_place = {p for p in touched for root in roots if p == root or root in p.parents}
        named |= at_place
        missing |= set() if at_place else {place}
    assert not missing, f"named by the recipe, and nothing there is of {example.pattern}"
    # Tests may use what they like.
    needed = {name(p) for p in touched if not name(p).startswith("tests/")}
    assert not needed - {name(p) for p in named}, "a place that the recipe does not name"
    assert len(needed) == example.count, sorted(needed)


def test_every_recipe_is_followed() -> None:
    followed = {e.recipe for e in EXAMPLES} | {e.with_recipe for e in EXAMPLES} - {""}
    assert set(RECIPES) == followed
