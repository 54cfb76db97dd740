"""Names, aliases and presets of a server of several models: what a file may say, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

from strata.decode.defaults import SamplingDefaults
from strata.decode.params import SamplingParams
from strata.errors import StrataError, UsageError
from strata.server.fleet.entries import Entries, Entry, entry_of, given, read_entries
from strata.server.preset import Preset


def test_a_file_of_models(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    path = tmp_path / "models.toml"
    path.write_text(
        '[models.small]\nmodel = "x.gguf"\naliases = ["s"]\ncontext = 512\nkeep_alive = "10m"\n'
        'sampling = { temperature = 0.5, repeat_penalty = 1.1, stop = "END" }\n'
        '[models.other]\nmodel = "user/repo:Q4_0"\n'
    )
    small, other = read_entries(path)
    assert small == Entry(
        "small",
        str(tmp_path / "x.gguf"),
        ("s",),
        context=512,
        keep_alive_s=600.0,
        sampling={"temperature": 0.5, "repetition_penalty": 1.1, "stop": ["END"]},
        origin="file",
    )
    assert (other.model, other.keep_alive_s) == ("user/repo:Q4_0", None)


def test_a_folder_of_models(tmp_path: Path) -> None:
    for name in ("b.gguf", "a model.gguf", "c-00001-of-00002.gguf", "c-00002-of-00002.gguf", "n"):
        (tmp_path / name).touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "config.json").touch()
    assert [entry.name for entry in read_entries(tmp_path)] == [
        "a-model",
        "b",
        "c-00001-of-00002",
        "dir",
    ]
    # A path is nobody's business.
    assert given(str(tmp_path / "b.gguf")).name == "b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[models.x]", "x has no model"),
        ("[models.x]\nmodel = 3", "x has no model"),
        ('[models.x]\nmodel = "m"\ncontxt = 3', "contxt"),
        ('[models.x]\nmodel = "m"\ncontext = "3"', "context of x"),
        ('[models.x]\nmodel = "m"\naliases = "y"', "aliases of x"),
        ('[models.x]\nmodel = "m"\nkeep_alive = "soon"', "keep_alive"),
        ('[models.x]\nmodel = "m"\nsampling = { top_p = 2 }', "top_p"),
        ('[models.x]\nmodel = "m"\nsampling = { topp = 2 }', "topp"),
        ('[models.x]\nmodel = "m"\ntemplate = "{{ .Prompt }}"', "Go"),
        ('[models."a b"]\nmodel = "m"', "no name"),
        ('[model.x]\nmodel = "m"', "[models.NAME]"),
        ("models = 3", "[models.NAME]"),
        ("[models", "not TOML"),
        ("models = " + "1" * 5000, "not TOML"),
        ("x" * 5000 + " = 1", "has 'xxx"),
        ('"\\u001b[31m" = 1', "has '\\x1b[31m'"),
        (f'[models.{"x" * 5000}]\nmodel = "m"', "no name"),
        (f'[models.x]\nmodel = "m"\n{"y" * 5000} = 3', "x has 'yyy"),
        (f'[models.x]\nmodel = "m"\ncontext = "{"3" * 5000}"', "context of x"),
        (f'[models.x]\nmodel = "m"\nsampling = {{ {"z" * 5000} = 2 }}', "parameter 'zzz"),
        (f'[models.x]\nmodel = "m"\nsampling = {{ temperature = "{"z" * 5000}" }}', "models.toml"),
        (f"[{'x' * 5000}]\n" * 2, "not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_entries(path)
    assert words in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_what_requests_make_is_kept(tmp_path: Path) -> None:
    saved = tmp_path / "folder" / "models.json"
    entries = Entries([Entry("a", "x.gguf", ("b",))], saved)
    entries.add(entry_of("c", {"model": "m", "system": "s"}, "created", "here"))
    for taken in ("a", "b"):
        with pytest.raises(UsageError, match="was given"):
            entries.add(Entry(taken, "m", origin="created"))
    later = Entries([Entry("d", "y.gguf")], saved)
    assert [entry.name for entry in later] == ["d", "c"]
    assert later.find("c:latest") == Entry("c", "m", system="s", origin="created")
    # What is given comes before what was made.
    found = Entries([Entry("c", "mine.gguf")], saved).find("c")
    assert found is not None
    assert found.model == "mine.gguf"
    with pytest.raises(UsageError, match="two models"):
        Entries([Entry("a", "x"), Entry("b", "y", ("a",))], None)
    saved.write_text("no json")
    with pytest.raises(StrataError, match="delete it"):
        Entries([], saved)


def test_a_preset_holds_where_a_request_says_nothing() -> None:
    preset = Preset("Be brief.", {"temperature": 0.5, "stop": ["END"]})
    question = {"role": "user", "content": "?"}
    assert [m["role"] for m in preset.messages([question])] == ["system", "user"]
    own = [{"role": "system", "content": "Else."}, question]
    assert preset.messages(own) == own
    params = preset.defaults(SamplingDefaults(SamplingParams(), {}, None)).params
    assert (params.temperature, params.stop) == (0.5, ("END",))
    stated = SamplingDefaults(SamplingParams(top_k=3), {"top_k": 3}, "x")
    assert Preset().defaults(stated) is stated
    assert Preset().variables({"a": 1}) == {"a": 1}
    silent = Preset(reasoning=False).variables({"a": 1})
    assert silent == {"enable_thinking": False, "thinking": False, "a": 1}
    assert Preset(reasoning=False).variables({"thinking": True})["thinking"] is True
    assert Preset(reasoning="low").variables({})["reasoning_effort"] == "low"
