"""llama-server's own tests against `strata serve`.

`python bench/llama_server_tests.py SUITE [--server LLAMA-SERVER] [--baseline base.json] --json out`

SUITE is the folder tools/server/tests of llama.cpp, unchanged; its tests want `requests`, `wget`
and `openai`. They start the program that LLAMA_SERVER_BIN_PATH names: here a launcher that serves
one model whatever they ask for, by `strata serve` with the options that mean the same, or by a
llama-server (`--server`), which shows what passes with that model at all. With `--baseline`, the
JSON of such a run, only what passes there is run and counted. Tests that are marked slow want large
models and are left out; those that want other files from the net fail in both.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

SWITCHES = frozenset(
    (
        *("--offline", "--cont-batching", "--embedding", "--reranking", "--metrics"),
        *("--kv-unified", "--swa-full", "--slots", "--no-slots", "--verbose", "--context-shift"),
        *("--no-models-autoload", "--jinja", "--no-jinja", "--no-mmproj", "--no-cache-idle-slots"),
        *("--no-ui", "--ui-mcp-proxy", "--backend_sampling"),
    )
)
"""Options of llama-server without a value."""

SAME = {
    "--port": "--port",
    "--host": "--host",
    "--temp": "--temperature",
    "--seed": "--seed",
    "--n-predict": "--max-tokens",
    "--threads": "--threads",
    "--api-key": "--api-key",
    "--chat-template": "--chat-template",
    "--chat-template-file": "--chat-template",
    "--verbose": "--verbose",
    "--cors-origins": "--cors-origin",
    "--no-ui": "--without page",
    "--no-slots": "--without slots",
    "--mcp-servers-config": "--mcp-servers",
}
"""Options that mean the same; what is in neither table has no counterpart and is left out."""

ABSENT = {
    "test_tools_builtin.py": "tools for files and shell of the host; Strata has none of its own",
    "test_mcp_proxy": "Strata fetches nothing for the page",
    "test_mcp_no_proxy": "Strata fetches nothing for the page: its path is a 404, not a 403",
    "test_cors_proxy": "Strata fetches nothing for the page",
    "test_router_props": "llama-server's router protocol; several models are served otherwise",
    "test_router_delete": "llama-server's router protocol; several models are served otherwise",
    "test_stream.py": "streams cannot be resumed",
    "test_server_sleep_read_only": "figures are the front's while a model is not loaded",
    "test_server_sleep_metrics": "figures are the front's while a model is not loaded",
    "test_lora.py": "no adapters",
    "test_slot_save.py": "KV is kept by --kv-store, not by slot",
    "test_speculative.py": "drafts are judged by lengths that llama-server's options set",
    "test_local_media_file": "text only",
    "test_anthropic_vision": "an image is refused with 400, not with 500",
    "test_anthropic_tool_result_with_image": "an image is refused with 400, not with 500",
    "Access-Control-Allow-Credentials": "pages of foreign origins get no cookies",
    "Access-Control-Allow-Headers": "headers are named: '*' would not stand for Authorization",
    "test_clear_and_restore": "looks for lines of llama-server's log",
    "test_embedding_pooling_none": "pooling is the model's",
    "prefill[prefill1": "parts of a message are joined as they are",
    "test_metrics_prompt_processed": "KV is found again by whole blocks of 64 positions",
    "test_server_model_aliases": "every alias is a model of the list",
    "test_responses_stream_with_llama_telemetry": "an answer that is cut ends in "
    "response.incomplete, as OpenAI's own does",
    "test_anthropic_empty_messages": "no messages are refused, as Anthropic's own server does",
    "test_access_static_assets": "the page has other files",
}
"""Why tests fail that are meant to, by a part of their name; they are not run."""

OWN_MODEL = "expects the words or the numbers of tokens of llama.cpp's own small models"
OF_ITS_MODEL = (
    *("test_load_split_model", "test_chat_completion[", "test_chat_completion_cached_tokens"),
    *("test_chat_completion_stream[", "test_chat_completion_with_openai_library"),
    *("test_responses_with_openai_library", "py::test_completion[", "test_completion_stream["),
    *("test_completion_with_openai_library", "test_completion_stream_with_openai_library"),
    *("test_completion_response_fields", "test_completion_prompt_cache", "test_ctx_shift_"),
    *("test_nocache_long_input_prompt", "test_tokenize_with_bos", "test_embedding_usage"),
    *("test_infill", "test_invalid_input_extra", "test_rerank", "test_chat_template["),
)
"""Tests that are run, but fail with any other model, llama-server's own server included."""


def strata_command(model: Path, folder: Path, asked: Sequence[str]) -> list[str]:
    """`strata serve` with what llama-server was asked for."""
    sleeps = "--sleep-idle-seconds" in asked
    found: dict[str, str] = {}
    at = 0
    while at < len(asked):
        name = asked[at]
        value = "" if name in SWITCHES else asked[at + 1]
        found[name] = value
        at += 1 if name in SWITCHES else 2
    parallel = int(found.get("--parallel", 4))
    command = [sys.executable, "-m", "strata", "serve", "--quiet", "--parallel", str(parallel)]
    if "--ctx-size" in found:
        # llama-server's is for all slots together.
        each = int(found["--ctx-size"]) // (1 if "--kv-unified" in found else parallel)
        command += ["--context", str(each)]
    # What holds there by default: pages of all origins, but no figures.
    if "--cors-origins" not in found and "--tools" not in found:
        command += ["--cors-origin", "*"]
    if "--metrics" not in found:
        command += ["--without", "metrics"]
    for name, value in found.items():
        # No limit, and pages of this machine, are what holds here anyway.
        if name in SAME and (name, value) not in (
            ("--n-predict", "-1"),
            ("--cors-origins", "localhost"),
        ):
            command += [*SAME[name].split(), *([value] if value else [])]
    if "--mcp-servers-json" in found:
        written = folder / "mcp.json"
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(found["--mcp-servers-json"])
        command += ["--mcp-servers", str(written)]
    if "--mcp-servers" in command and "--api-key" not in found:
        command += ["--allow-unauthenticated"]
    # One that goes when nobody asks is served as one of several.
    if sleeps:
        command += ["--keep-alive", f"{found['--sleep-idle-seconds']}s"]
    else:
        # llama-server lets models think by default where they can.
        command += ["--reasoning", "off" if found.get("--reasoning") == "off" else "on"]
        command += ["--files", "none"]
    # It answers to every name, and is called by its alias, as a file here is.
    served = folder / f"{found.get('--alias', 'model')}.gguf"
    served.parent.mkdir(parents=True, exist_ok=True)
    if not served.exists():
        served.symlink_to(model)
    # A router knows its models by their names.
    any_name = [] if sleeps or "--alias" not in found else ["--alias", "*"]
    return [*command, *any_name, str(served)]


def llama_command(server: str, model: Path, asked: Sequence[str]) -> list[str]:
    """llama-server with this model for whatever it was asked for."""
    kept: list[str] = []
    at = 0
    while at < len(asked):
        name = asked[at]
        length = 1 if name in SWITCHES else 2
        if name not in ("--hf-repo", "--hf-file", "--model", "--model-url", "--offline"):
            kept += asked[at : at + length]
        at += length
    # A router has no model, and no name. Threads that wait for each other spin: one is enough.
    router = "--alias" not in asked
    kept += [] if router else ["--model", str(model)]
    return [server, *kept, *([] if "--threads" in kept else ["--threads", "1"])]


def outcomes(report: Path) -> dict[str, dict[str, str]]:
    """Of every test: passed, failed or skipped, and the last line of what it says."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
        parts = {part.tag: part for part in case}
        bad = parts.get("failure", parts.get("error"))
        if bad is not None:
            line = (bad.get("message") or "").strip().splitlines()[:1]
            found[name] = {"outcome": "failed", "said": line[0][:200] if line else ""}
        else:
            found[name] = {"outcome": "skipped" if "skipped" in parts else "passed"}
    return found


CHOOSING = """\
import json, os
import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    with open(os.environ["STRATA_TESTS_CHOSEN"]) as file:
        only, parts = json.load(file)
    names = [f"{item.path.name}::{item.name}" for item in items]
    wanted = [n for n in names if only is None or n in only]
    left = [n for n in wanted if any(part in n for part in parts)]
    with open(os.environ["STRATA_TESTS_CHOSEN"] + ".left", "w") as file:
        json.dump(left, file)
    kept = set(wanted) - set(left)
    items[:] = [item for item, name in zip(items, names) if name in kept]
"""
"""A plugin of pytest: names of tests are no arguments for it, whatever they hold."""


def run(
    suite: Path,
    launch: Sequence[str],
    tests: Sequence[str],
    only: Sequence[str] | None,
    absent: Sequence[str],
    port: int,
) -> dict[str, Any]:
    """The suite, or ``only`` some tests of it, with a launcher. What has a part of its name among
    the ``absent`` fails without being run."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        launcher = folder / "server"
        told = shlex.join([sys.executable, str(Path(__file__).resolve()), "--launch", *launch])
        launcher.write_text(f'#!/bin/sh\nexec {told} -- "$@"\n')
        launcher.chmod(0o755)
        (folder / "choosing.py").write_text(CHOOSING)
        (folder / "chosen").write_text(json.dumps([only, list(absent)]))
        search = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            **os.environ,
            "LLAMA_SERVER_BIN_PATH": str(launcher),
            "PORT": str(port),
            "PYTHONPATH": os.pathsep.join(filter(None, search)),
            "STRATA_TESTS_FOLDER": str(folder / "models"),
            "STRATA_TESTS_CHOSEN": str(folder / "chosen"),
        }
        report = folder / "report.xml"
        options = ["-q", "-m", "not slow", f"--junitxml={report}", "-p", "no:cacheprovider"]
        options += ["-p", "no:xdist"] if find_spec("xdist") else []
        command = [sys.executable, "-m", "pytest", *options, "-p", "choosing", *(tests or ["unit"])]
        subprocess.run(command, cwd=suite, env=environment, check=False)
        left = json.loads((folder / "chosen.left").read_text())
        return {**outcomes(report), **{name: {"outcome": "failed"} for name in left}}


def why(name: str) -> str | None:
    """Why a test is known to fail."""
    if any(part in name for part in OF_ITS_MODEL):
        return OWN_MODEL
    return next((reason for part, reason in ABSENT.items() if part in name), None)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--server", help="a llama-server, instead of `strata serve`")
    parser.add_argument("--baseline", type=Path, help="the JSON of a run with --server")
    parser.add_argument("--tests", nargs="*", default=[], help="files or tests of the suite")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()

    from machine import describe
    from strata.hub.references import resolve

    model = str(resolve(chosen.model).resolve())
    suite = chosen.suite.resolve()
    base = None
    if chosen.baseline is not None:
        base = json.loads(chosen.baseline.read_text())["tests"]
    only = None
    if base is not None:
        only = [name for name, each in base.items() if each["outcome"] == "passed"]
    launch = ["llama", chosen.server, model] if chosen.server else ["strata", model]
    absent = () if chosen.server else tuple(ABSENT)
    found = run(suite, launch, chosen.tests, only, absent, chosen.port)
    for name, each in found.items():
        if each["outcome"] == "failed" and not chosen.server and (reason := why(name)):
            each["why"] = reason
    count = Counter(
        "of its model" if each.get("why") == OWN_MODEL else each["outcome"]
        for each in found.values()
    )
    told = {"machine": describe(), "model": chosen.model, "count": dict(count), "tests": found}
    print(json.dumps(told["count"]))
    for name, each in found.items():
        if each["outcome"] == "failed":
            print(f"{name}: {each.get('why') or each.get('said')}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(told, indent=1) + "\n")


def launch(arguments: Sequence[str]) -> None:
    """Become the server that a test starts."""
    middle = arguments.index("--")
    (kind, *rest), asked = arguments[:middle], arguments[middle + 1 :]
    if kind == "llama":
        command = llama_command(rest[0], Path(rest[1]), asked)
    else:
        command = strata_command(Path(rest[0]), Path(os.environ["STRATA_TESTS_FOLDER"]), asked)
    os.execv(command[0], command)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launch"]:
        launch(sys.argv[2:])
    else:
        main()
