"""Wheels in other Pythons and other userlands: installed without a compiler, their answers have
the same bits.

`python bench/wheels.py WHEELS --python PYTHON... --root FOLDER... --json out.json`

WHEELS is a folder of this package's wheels (`pip wheel . --no-deps` with Python 3.10, 3.11 and
3.12, whose wheel is for all later ones). FOLDER is the root of another system that has python3 with
venv, such as that of `debootstrap --variant=minbase --include=python3,python3-venv trixie FOLDER`.
One whose C library is musl (1.2.4 or newer, which numpy's wheels take) can be made of busybox, musl
and a CPython compiled by musl-gcc, its wheel by CXX='python -m ziglang c++ -target
x86_64-linux-musl' and `wheel tags --platform-tag musllinux_1_2_x86_64`;
entering it takes the rights of root. For each a virtual environment is made there, in which pip
installs the wheel with what a server needs, and nothing that is a source: what that takes is
downloaded before, for that Python and its C library. Then SmolLM2 answers, by the command and in
Python, where the log-probabilities of a text are compared by their bits. The Python that runs this
script says first what is right. Rows of other Pythons and systems that are in the JSON already stay
there, if the same was right then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe

PROMPT = "The capital of France is"
PROGRAMS = ["cc", "gcc", "g++", "clang", "cargo", "rustc", "cmake"]
# What a Python is: its version, its C library, and which programs that compile can be found.
ASKED = f"""
import json, platform, shutil, sys, sysconfig
musl = "musl" in (sysconfig.get_config_var("SOABI") or "")
libc = "musl" if musl else " ".join(platform.libc_ver())
version = ".".join(map(str, sys.version_info[:2]))
found = [name for name in {PROGRAMS} if shutil.which(name)]
print(json.dumps(dict(python=version, libc=libc, compilers=found)))
"""
# What it answers. As float32: the last bit of a float64 is that of numpy's exponential, which is
# not the same in each version.
ANSWERED = f"""
import array, hashlib, json, sys
import strata.server.app
from strata import LLM
with LLM(sys.argv[1], context=1024) as llm:
    answer = llm.generate({PROMPT!r}, dict(max_tokens=24, temperature=0))
    logprobs = llm.prompt_logprobs({PROMPT!r} + answer.text)
bits = hashlib.sha256(array.array("f", logprobs[1:]).tobytes()).hexdigest()
print(json.dumps(dict(tokens=list(answer.token_ids), logprobs_sha256=bits, isa=llm.isa)))
"""


class Failed(Exception):
    """A command failed; with the end of what it said."""


def said(command: Sequence[str], **options: Any) -> str:
    """Standard output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise Failed(f"{Path(command[0]).name} failed: {done.stderr.strip()[-800:]}")
    return str(done.stdout)


def downloaded(wheels: Path, asks: str, options: Sequence[str], what: str, folder: Path) -> None:
    """The wheel and all that it needs, as wheels, in a folder."""
    chosen = ["--only-binary", ":all:", "--find-links", str(wheels), *options, "-d", str(folder)]
    said([asks, "-m", "pip", "download", "-q", "--no-input", *chosen, what])


def asked(prefix: Sequence[str], python: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    found = json.loads(said([*prefix, python, "-c", ASKED], env=env))
    assert isinstance(found, dict)
    return found


def tried(prefix: Sequence[str], python: str, wheels: Path, shared: Path, seen: str) -> Any:
    """What one Python says. It sees the folder ``shared`` as ``seen``."""
    about = asked(prefix, python)
    # llguidance has no wheel for musl.
    musl = about["libc"] == "musl"
    what = "strata-llm[http]" if musl else "strata-llm[server]"
    if prefix:
        # pip here asks for that Python, as far as it can.
        options = ["--python-version", about["python"]]
        for platform in ("musllinux_1_1", "musllinux_1_2") if musl else ():
            options += ["--platform", f"{platform}_{os.uname().machine}"]
        downloaded(wheels, sys.executable, options, what, shared / "wheels")
    else:
        downloaded(wheels, python, [], what, shared / "wheels")
    said([*prefix, python, "-m", "venv", f"{seen}/venv"])
    inside = [*prefix, f"{seen}/venv/bin/python"]
    # Its own programs, and none of this machine's.
    env = {"PATH": f"{seen}/venv/bin", "HOME": seen, "STRATA_HOME": f"{seen}/home"}
    if prefix:
        env["PATH"] += ":/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    options = ["-q", "--no-index", "--only-binary", ":all:", "--find-links", f"{seen}/wheels"]
    about["compilers"] = asked(prefix, inside[-1], env)["compilers"]
    said([*inside, "-m", "pip", "install", *options, what], env=env)
    (ours,) = (shared / "wheels").glob("strata_llm-*.whl")
    about |= {"wheel": ours.name, "wheel_bytes": ours.stat().st_size, "installed": what}
    return about | answered(inside, f"{seen}/model.gguf", env)


def answered(python: Sequence[str], model: str, env: dict[str, str] | None = None) -> Any:
    asks = ["run", model, PROMPT, "--raw", "-n", "12", "--temperature", "0", "--quiet"]
    text = said([*python, "-m", "strata", *asks], env=env)
    return {"answer": text, **json.loads(said([*python, "-c", ANSWERED, model], env=env))}


def system_of(root: Path | None) -> str:
    """What a system calls itself."""
    text = ((root or Path("/")) / "etc/os-release").read_text()
    name = next(line for line in text.splitlines() if line.startswith("PRETTY_NAME="))
    return name.partition("=")[2].strip('"')


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--python", nargs="*", default=[])
    parser.add_argument("--root", nargs="*", type=Path, default=[])
    parser.add_argument("--together", type=int, default=2, help="at the same time")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()

    from strata.hub.references import resolve

    model = resolve("smollm2")
    right = {answered([sys.executable], str(model))["isa"]: {}}
    right |= {isa: said_here(str(model), isa) for isa in (*right, "scalar")}
    asked: list[tuple[Path | None, str]] = [(None, python) for python in chosen.python]
    asked += [(root, "python3") for root in chosen.root]
    with ThreadPoolExecutor(chosen.together) as pool:
        found = list(pool.map(lambda one: row(*one, chosen.wheels, model, right), asked))
    if chosen.json is not None:
        if chosen.json.exists():
            new = [named(one) for one in found]
            before = json.loads(chosen.json.read_text())
            kept = [one for one in before["found"] if named(one) not in new]
            found = kept * (before["right"] == right) + found
        report = {"machine": describe(), "prompt": PROMPT, "right": right, "found": found}
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")
    if not all(one["equal"] and not one.get("compilers") for one in found):
        raise SystemExit("it does not hold")


def said_here(model: str, isa: str) -> Any:
    """What is right with an instruction set: a compiler's library may not tell a processor's."""
    return answered([sys.executable], model, {**os.environ, "STRATA_ISA": isa})


def named(one: dict[str, Any]) -> tuple[str, str]:
    return one["system"], one["python"]


def row(root: Path | None, python: str, wheels: Path, model: Path, right: Any) -> dict[str, Any]:
    """One Python of one system."""
    one: dict[str, Any] = {"system": system_of(root)}
    chroot = shutil.which("chroot", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "chroot"
    with tempfile.TemporaryDirectory(dir=root and root / "tmp") as made:
        shared = Path(made)
        shutil.copyfile(model, shared / "model.gguf")
        seen = made if root is None else f"/tmp/{shared.name}"
        prefix = [] if root is None else [chroot, str(root)]
        try:
            one |= tried(prefix, python, wheels, shared, seen)
        except Failed as error:
            one |= {"python": Path(python).name, "error": str(error)}
    expected = right.get(one.get("isa"), {"isa": "one of these"})
    one["equal"] = all(one.get(name) == value for name, value in expected.items())
    print(json.dumps(one), flush=True)
    return one


if __name__ == "__main__":
    main()
