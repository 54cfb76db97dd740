"""Endpoints of the front about models: which there are, which are loaded, and making others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic, time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strata import __version__
from strata.errors import StrataError, UsageError
from strata.hub.cache import HubRef
from strata.hub.references import Builtin, LocalPath, Reference, parse
from strata.server.errors import ApiError, as_api_error, error_body
from strata.server.fleet.bodies import read
from strata.server.fleet.entries import Entry, Origin, checked_texts, entry_of
from strata.server.fleet.fleet import Fleet
from strata.server.fleet.members import Member
from strata.server.ollama.models import OLLAMA_VERSION
from strata.server.parsers import answer_format
from strata.server.replies import LINES, Reply, StreamReply, to_json

_NEVER = "9999-12-31T23:59:59Z"

_DESCRIBED_S = 8.0
"""For which a list of models waits for those whose headers were not read yet."""

_LONGEST_NAME = 300


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Named(_Lenient):
    """``/api/show``, ``/api/pull`` and ``/api/delete``; old clients say ``name``."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None

    @property
    def wanted(self) -> str:
        """The name; ApiError where there is none."""
        found = self.model or self.name
        if not found:
            raise ApiError(400, "model is required")
        return _checked(found)


class Create(Named):
    """``/api/create``: a further name for a model, with what holds under it."""

    from_: str | None = Field(None, alias="from")
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Any] | None = None
    messages: list[Any] | None = None
    adapters: Any = None
    files: Any = None
    quantize: str | None = None


class Copy(_Lenient):
    """``/api/copy``."""

    source: str
    destination: str


def routes(fleet: Fleet) -> list[Route]:
    """The endpoints."""
    started = int(time())
    under_way: set[asyncio.Task[None]] = set()

    def card(name: str, member: Member) -> dict[str, Any]:
        found = {"id": name, "object": "model", "created": started, "owned_by": "strata"}
        found["root"] = member.entry.name
        context = member.context if member.loaded else None
        if context is None and member.card is not None:
            context = member.card.context
        return {**found, **({} if context is None else {"max_model_len": context})}

    def anthropic_card(name: str) -> dict[str, Any]:
        created = datetime.fromtimestamp(started, timezone.utc).isoformat().replace("+00:00", "Z")
        return {"type": "model", "id": name, "display_name": name, "created_at": created}

    def every() -> list[tuple[str, Member]]:
        return [(name, member) for member in fleet.members() for name in member.entry.names]

    async def list_models(request: Request) -> Response:
        there = every()
        if "anthropic-version" in request.headers:
            named = [anthropic_card(name) for name, _ in there]
            ends = {"first_id": there[0][0], "last_id": there[-1][0]} if there else {}
            return Reply({"data": named, **ends, "has_more": False})
        return Reply({"object": "list", "data": [card(*pair) for pair in there]})

    async def retrieve_model(request: Request) -> Response:
        name = request.path_params["id"]
        member = fleet.find(name)
        if "anthropic-version" in request.headers:
            return Reply(anthropic_card(name))
        return Reply(card(name, member))

    async def version(request: Request) -> Response:
        return Reply({"version": OLLAMA_VERSION, "strata": __version__})

    async def tags(request: Request) -> Response:
        reading = asyncio.create_task(_described(fleet))
        under_way.add(reading)
        reading.add_done_callback(under_way.discard)
        await asyncio.wait([reading], timeout=_DESCRIBED_S)
        # A file that cannot be read is none that can be asked for.
        there = [(name, member, member.card) for name, member in every() if member.card]
        found = [{**_listed(n, m), "modified_at": known.modified} for n, m, known in there]
        return Reply({"models": found})

    async def running(request: Request) -> Response:
        found = []
        for member in fleet.loaded:
            expires = _NEVER
            if member.keep_alive_s >= 0:
                left = member.expires - monotonic()
                if member.leases:
                    left = member.keep_alive_s
                # More than a date can hold is for ever.
                if left < 1e9:
                    when = datetime.now(timezone.utc) + timedelta(seconds=left)
                    expires = when.isoformat().replace("+00:00", "Z")
            found.append(
                {
                    **_listed(member.entry.name, member),
                    "size": member.share,
                    "size_vram": 0,
                    "expires_at": expires,
                    "context_length": member.context,
                    "requests": member.leases,
                }
            )
        return Reply({"models": found})

    async def show(request: Request) -> Response:
        member = fleet.find((await read(request, Named)).wanted)
        known = await fleet.card(member)
        entry = member.entry
        template = entry.template or known.template
        said = [f"{key} {value!r}" for key, value in entry.sampling.items()]
        lines = [f"FROM {_shown(entry.model)}", *(f"PARAMETER {each}" for each in said)]
        if entry.system:
            lines.append(f'SYSTEM """{entry.system}"""')
        return Reply(
            {
                "modelfile": "\n".join(lines),
                "parameters": "\n".join(said),
                "template": template,
                **({"system": entry.system} if entry.system else {}),
                "details": known.details,
                "model_info": known.model_info,
                "capabilities": [
                    "embedding" if known.embeds else "completion",
                    *(["tools"] if template else []),
                    *(["thinking"] if answer_format(template).thinks else []),
                ],
                "modified_at": known.modified,
            }
        )

    async def create(request: Request) -> Response:
        body = await read(request, Create)
        for what in ("adapters", "files", "quantize"):
            if getattr(body, what):
                raise ApiError(400, f"{what} is not possible here; `strata quantize` makes files")
        if body.messages:
            raise ApiError(400, "messages is not possible here; system is")
        if not body.from_:
            raise ApiError(400, "from is required: the name of a model that is here")
        base = fleet.find(body.from_).entry
        said = {
            **{k: getattr(base, k) for k in ("model", "parallel", "threads", "kv_type", "draft")},
            "context": base.context,
            "system": base.system if body.system is None else body.system,
            "template": base.template if body.template is None else body.template,
            "sampling": dict(base.sampling),
        }
        checked_texts(body.system, body.template)
        parameters = dict(body.parameters or {})
        if (context := parameters.pop("num_ctx", None)) is not None:
            said["context"] = context
        said["sampling"] |= parameters
        said = {k: v for k, v in said.items() if v is not None}
        made = entry_of(_bare(body.wanted), said, "created", "create")
        await _replace(fleet, made)
        return _steps(body.stream, ["reading model metadata", "writing manifest", "success"])

    async def copy(request: Request) -> Response:
        body = await read(request, Copy)
        base = fleet.find(body.source).entry
        name = _bare(_checked(body.destination))
        entry_of(name, {"model": base.model}, "created", "copy")
        await _replace(fleet, replace(base, name=name, aliases=(), origin="created"))
        return Response(status_code=200)

    async def pull(request: Request) -> Response:
        body = await read(request, Named)
        name = body.wanted
        entry = fleet.entries.find(name)
        if entry is not None and _is_path(entry.model):
            return _steps(body.stream, ["success"])
        reference = entry.model if entry is not None else name
        _check_pulled(reference)
        made = None
        if entry is None:
            made = entry_of(_bare(name), {"model": reference}, "pulled", "pull")
        parts = _pulled(fleet, reference, made)
        if body.stream is False:
            return Reply([part async for part in parts][-1])
        return StreamReply(_lines(parts), LINES)

    async def delete(request: Request) -> Response:
        name = (await read(request, Named)).wanted
        member = fleet.find(name)
        entry = member.entry
        if not entry.own:
            raise ApiError(
                400,
                f"{entry.name} was given when the server was started, and its files are not the "
                "server's: `strata rm` deletes what was downloaded",
            )
        await fleet.unload(member)
        if fleet.entries.find(entry.name) is not entry:
            raise ApiError(404, f"{entry.name} was deleted or made anew meanwhile")
        others = [e.model for e in list(fleet.entries) if e is not entry]
        fleet.entries.remove(entry)
        fleet.forget(member)
        if entry.origin == "pulled" and not any(_share(entry.model, o) for o in others):
            await asyncio.get_running_loop().run_in_executor(None, _remove, entry.model)
        return Response(status_code=200)

    get = [
        ("/v1/models", list_models),
        ("/models", list_models),
        ("/v1/models/{id:path}", retrieve_model),
        ("/api/version", version),
        ("/api/tags", tags),
        ("/api/ps", running),
    ]
    post = [
        ("/api/show", show),
        ("/api/create", create),
        ("/api/copy", copy),
        ("/api/pull", pull),
    ]
    return [
        *(Route(path, work, methods=["GET", "HEAD"]) for path, work in get),
        *(Route(path, work, methods=["POST"]) for path, work in post),
        Route("/api/delete", delete, methods=["DELETE", "POST"]),
    ]


def _listed(name: str, member: Member) -> dict[str, Any]:
    known = member.card
    assert known is not None
    parent = _shown(member.entry.model) if member.entry.own else ""
    return {
        "name": name,
        "model": name,
        "size": known.size,
        "digest": known.digest,
        "details": {
            **known.details,
            "parent_model": parent,
        },
    }


async def _described(fleet: Fleet) -> None:
    """All models, as far as they can be read and there is room for reading them."""
    with suppress(StrataError):
        await fleet.describe(fleet.members())


def _checked(name: str) -> str:
    """A name that is worth looking for."""
    if len(name) > _LONGEST_NAME:
        raise ApiError(
            400, f"{name[:40]}... is no name: it has more than {_LONGEST_NAME} characters"
        )
    return name


def _is_path(reference: str) -> bool:
    """Whether a model is one of this machine's files."""
    return reference.startswith((".", "/", "~")) or Path(reference).exists()


def _shown(reference: str) -> str:
    """What a model is made from. A path is nobody's business; its last part is a name."""
    return Path(reference).name if _is_path(reference) else reference


def _share(reference: str, other: str) -> bool:
    """Whether deleting what one stands for might delete what the other does."""
    try:
        found = [_repository(parse(each)) for each in (reference, other)]
    except StrataError:
        return reference == other
    return found[0] == found[1]


def _repository(parsed: Reference) -> object:
    return parsed.repo.lower() if isinstance(parsed, HubRef) else parsed


async def _replace(fleet: Fleet, entry: Entry) -> None:
    """Add an entry; one of its name that is loaded goes first."""
    there = fleet.entries.find(entry.name)
    if there is not None and not there.own:
        # Says so.
        fleet.entries.add(entry)
    if there is not None:
        member = fleet.find(entry.name)
        await fleet.unload(member)
        fleet.forget(member)
    fleet.entries.add(entry)


def _check_pulled(reference: str) -> None:
    """ApiError unless it names something of the hub. Nobody is told what files this machine has."""
    try:
        parse(reference, local=False)
    except UsageError as error:
        raise ApiError(400, str(error)) from None
    except StrataError as error:
        raise ApiError(404, str(error), code="model_not_found") from None


async def _pulled(
    fleet: Fleet, reference: str, made: Entry | None
) -> AsyncIterator[dict[str, Any]]:
    yield {"status": "pulling manifest"}
    async for said in fleet.fetch(reference):
        if "progress" in said:
            label, done, total = said["progress"]
            part = {"status": f"pulling {label}", "digest": label, "completed": done}
            yield part if total is None else {**part, "total": total}
        elif "fetched" in said:
            if made is not None:
                # What was here before is not ours to delete.
                origin: Origin = "created" if said["before"] else "pulled"
                await _replace(fleet, replace(made, origin=origin))
            yield {"status": "success"}
            return
    raise ApiError(500, "the download broke off; ask again, and it goes on where it stopped")


async def _lines(parts: AsyncIterator[dict[str, Any]]) -> Any:
    try:
        async for part in parts:
            yield to_json(part) + "\n"
    except StrataError as error:
        yield to_json(error_body("/api/pull", as_api_error(error))) + "\n"


def _steps(stream: bool | None, steps: Sequence[str]) -> Response:
    if stream is False:
        return Reply({"status": steps[-1]})
    text = "".join(to_json({"status": step}) + "\n" for step in steps)
    return Response(text, media_type=LINES)


def _bare(name: str) -> str:
    return name.removesuffix(":latest")


def _remove(reference: str) -> None:
    """Delete a model that was downloaded by us, if it is still there."""
    from strata.hub.builtin import remove_builtin
    from strata.hub.cache import plan_removal, remove
    from strata.hub.downloads import ModelNotFound

    try:
        parsed = parse(reference)
        if isinstance(parsed, Builtin):
            remove_builtin(parsed.name)
        elif not isinstance(parsed, LocalPath):
            remove(plan_removal(parsed))
    except ModelNotFound:
        return
