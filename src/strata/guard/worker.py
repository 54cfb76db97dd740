"""The nursery and its wards, on their side. Started by ``strata.guard.nursery``; imports little."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
from typing import Any, NoReturn

from strata.guard import limits, wire


def main(fd: int) -> NoReturn:
    """Obey the process that started this one, until it is gone."""
    control = socket.socket(fileno=fd)
    control.settimeout(None)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # What is computed for others comes first.
        os.nice(5)
    wards: set[int] = set()
    vocabularies: dict[int, Any] = {}
    with contextlib.suppress(wire.FrameError, OSError):
        while True:
            _obey(control, wards, vocabularies)
    for pid in wards:
        os.kill(pid, signal.SIGKILL)
    for pid in wards:
        os.waitpid(pid, 0)
    os._exit(0)


def _obey(control: socket.socket, wards: set[int], vocabularies: dict[int, Any]) -> None:
    payload, fd = wire.receive_with_fd(control)
    command = json.loads(payload)
    match command["do"]:
        case "vocabulary":
            tokens = wire.receive(control, most=1 << 32)
            answer: dict[str, Any] = {}
            try:
                from strata.guard.grammar_ward import make_vocabulary

                vocabularies[command["number"]] = make_vocabulary(tokens)
            except BaseException as error:
                # A panic of the library is no Exception.
                answer = {"error": f"the vocabulary is not usable for grammars: {error}"[:400]}
            gc.collect()
            wire.send(control, json.dumps(answer).encode())
        case "forget":
            vocabularies.pop(command["number"], None)
        case "open":
            assert fd is not None
            if command["kind"] == "template":
                import strata.guard.template_ward  # noqa: F401
            # Wards share what is there: it is not touched by collecting.
            gc.freeze()
            pid = os.fork()
            if pid == 0:
                control.close()
                _ward(fd, command, vocabularies)
            os.close(fd)
            wards.add(pid)
            wire.send(control, json.dumps({"pid": pid}).encode())
        case "end":
            # Nobody else has this number until it is waited for.
            if command["pid"] in wards:
                wards.discard(command["pid"])
                os.kill(command["pid"], signal.SIGKILL)
                os.waitpid(command["pid"], 0)


def _ward(fd: int, command: dict[str, Any], vocabularies: dict[int, Any]) -> NoReturn:
    status = 1
    try:
        limits.confine(command["nbytes"])
        with socket.socket(fileno=fd) as sock:
            sock.settimeout(None)
            if command["kind"] == "template":
                from strata.guard import template_ward

                template_ward.serve(sock, command["nbytes"])
            else:
                from strata.guard import grammar_ward

                grammar_ward.serve(sock, vocabularies[command["number"]])
        status = 0
    finally:
        os._exit(status)
