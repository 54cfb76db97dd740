"""Wheels in fresh Pythons and in another userland: installed without a compiler, they answer alike.

`python tools/try_wheels.py WHEELS --python PYTHON... [--root FOLDER...] [--json out.json]`

WHEELS is a folder of this package's wheels (`pip wheel . --no-deps`, with Python 3.10, 3.11 and
3.12, whose wheel is for all later ones). For each PYTHON, and in each FOLDER, the root of another
system that has python3 with venv (`debootstrap --variant=minbase --include=python3,python3-venv
trixie FOLDER`; entering it takes the rights of root), a virtual environment is made, the wheel is
installed with its extra for servers and no compiler on the path, and SmolLM2 is asked. What the
wheel needs is downloaded before, for that Python, so that other systems need no net. All answers
have to be the same bytes.
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
from pathlib import Path
from typing import Any

PROMPT = "The capital of France is"
PACKAGE = "strata-llm[server]"
ASKS = "import platform, sys; print(*sys.version_info[:2], sep='.'); print(*platform.libc_ver())"


class Failed(Exception):
    """A command failed; with the end of what it said."""


def said(command: Sequence[str], **options: Any) -> str:
    """Standard output."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:8])}: {done.stderr.strip()[-800:]}")
    return str(done.stdout)


def downloaded(wheels: Path, python: str, version: str | None, folder: Path) -> None:
    """The wheel and all that it needs, in a folder: for ``python`` itself, since pip takes what a
    package needs for the Python that it runs in, or where that has no network for a ``version``
    (3.12, say)."""
    options = ["--only-binary", ":all:", "--find-links", str(wheels)]
    options += [] if version is None else ["--python-version", version]
    said([python, "-m", "pip", "download", "-q", *options, "-d", str(folder), PACKAGE])


def tried(prefix: Sequence[str], python: str, wheels: Path, shared: Path, seen: str) -> Any:
    """What one Python says. It sees the folder ``shared`` as ``seen``."""
    version, libc = said([*prefix, python, "-c", ASKS]).splitlines()
    if prefix:
        downloaded(wheels, sys.executable, version, shared / "wheels")
    else:
        downloaded(wheels, python, None, shared / "wheels")
    said([*prefix, python, "-m", "venv", f"{seen}/venv"])
    inside = [*prefix, f"{seen}/venv/bin/python", "-m"]
    # Its own programs, and none that compiles.
    env = {"PATH": f"{seen}/venv/bin", "HOME": seen, "STRATA_HOME": f"{seen}/home"}
    options = ["-q", "--no-index", "--only-binary", ":all:", "--find-links", f"{seen}/wheels"]
    if prefix:
        env["PATH"] += ":/usr/sbin:/usr/bin"
    said([*inside, "pip", "install", *options, PACKAGE], env=env)
    asked = ["run", f"{seen}/model.gguf", PROMPT, "--raw", "-n", "12", "--temperature", "0"]
    answer = said([*inside, "strata", *asked, "--quiet"], env=env)
    said([*inside[:-1], "-c", "import strata.server.app"], env=env)
    return {"python": version, "libc": libc, "answer": answer}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--python", nargs="*", default=[])
    parser.add_argument("--root", nargs="*", type=Path, default=[])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()

    from strata.hub.references import resolve

    model = resolve("smollm2")
    found, wrong = [], False
    chroot = shutil.which("chroot", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "chroot"
    for root, python in [(None, p) for p in chosen.python] + [(r, "python3") for r in chosen.root]:
        with tempfile.TemporaryDirectory(dir=root and root / "tmp") as made:
            shared = Path(made)
            shutil.copyfile(model, shared / "model.gguf")
            seen = made if root is None else f"/tmp/{shared.name}"
            prefix = [] if root is None else [chroot, str(root)]
            try:
                found.append(tried(prefix, python, chosen.wheels, shared, seen))
            except Failed as error:
                found.append({"python": python, "error": str(error)})
        if root is not None:
            name = (root / "etc/os-release").read_text().splitlines()[0]
            found[-1]["system"] = name.partition("=")[2].strip('"')
        print(json.dumps(found[-1]))
    answers = {each.get("answer") for each in found}
    wrong = len(answers) != 1 or None in answers
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"prompt": PROMPT, "found": found}, indent=1) + "\n")
    if wrong:
        raise SystemExit("it does not hold")


if __name__ == "__main__":
    main()
