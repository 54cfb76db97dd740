"""Does what a server keeps of the responses that it gave end where its bound is?

`python bench/kept_responses.py --requests 8000 --json out.json`

Each response of a server with a tiny model is kept for who goes on with it, and all of them have a
fourth of the memory for requests; beyond that the oldest are forgotten. After every part of the
requests: how many are still there, what the ledger has for requests, and what the system counts of
the process. It may grow until the first is forgotten, and not much afterwards.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fuzz_files import Seeds
from fuzz_requests import served
from machine import describe

PARTS = 40


def ask(client: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> Any:
    """Status and answer."""
    data = None if body is None else json.dumps(body)
    client.request(method, path, data, {"content-type": "application/json"})
    answer = client.getresponse()
    return answer.status, json.loads(answer.read())


def resident(pid: int) -> int:
    """Bytes of the process that are in memory and no file's."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(x.split()[1]) << 10 for x in status.splitlines() if x.startswith("RssAnon:"))


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, look, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--note", help="what else the machine did")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args(argv)
    ids: list[str] = []
    parts: list[dict[str, int]] = []
    oldest = 0
    with tempfile.TemporaryDirectory() as directory:
        model = Seeds(Path(directory)).directories["llama"]
        with served(model, "none") as (url, process):
            client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
            name = ask(client, "GET", "/v1/models")[1]["data"][0]["id"]
            asked: dict[str, Any] = {"model": name, "max_output_tokens": 4}
            asked["metadata"] = {f"key {n}": "x" * 400 for n in range(16)}
            for part in range(1, PARTS + 1):
                while len(ids) < part * args.requests // PARTS:
                    asked["input"] = f"hi {len(ids)}"
                    status, said = ask(client, "POST", "/v1/responses", asked)
                    if status != 200:
                        raise SystemExit(f"request {len(ids)}: {status}: {said}")
                    ids.append(said["id"])
                while ask(client, "GET", f"/v1/responses/{ids[oldest]}")[0] == 404:
                    oldest += 1
                owned = ask(client, "GET", "/memory")[1]["owned"].get("requests", 0)
                found = {"asked": len(ids), "kept": len(ids) - oldest, "owned_bytes": owned}
                parts.append({**found, "resident_bytes": resident(process.pid)})
                print(parts[-1], flush=True)
    full = [part for part in parts if part["kept"] < part["asked"]]
    if len(full) < PARTS // 2:
        raise SystemExit("too little was forgotten: ask for more")
    report = {
        "machine": describe(),
        "note": args.note,
        "most_owned_bytes": max(part["owned_bytes"] for part in parts),
        "resident_bytes": {
            "first": parts[0]["resident_bytes"],
            "when the first was forgotten": full[0]["resident_bytes"],
            "most afterwards": max(part["resident_bytes"] for part in full[1:]),
            "last": full[-1]["resident_bytes"],
        },
        "parts": parts,
    }
    print({name: value for name, value in report.items() if name not in ("machine", "parts")})
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
