"""What is wrong with a body, in a line that whoever wrote it understands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strata.server.errors import ApiError


def as_invalid(errors: Sequence[Any], body: Any) -> ApiError:
    """Error 400 for what pydantic found in ``body``.

    Of a field that may have one of several forms, pydantic tells for each form why it is not that
    one: what comes deepest is about the form that was meant.
    """
    if errors[0]["type"] == "json_invalid":
        return ApiError(400, "the request body is not JSON")
    found = [(_path(error, body), error["msg"]) for error in errors]
    first = found[0][0][:1]
    where = max((path for path, _ in found if path[:1] == first), key=len)
    reasons = dict.fromkeys(reason for path, reason in found if path == where)
    message = f"{'.'.join(where) or 'the request body'}: {', or: '.join(reasons)}"
    return ApiError(400, message, param=first[0] if first else None)


def _path(error: Any, body: Any) -> tuple[str, ...]:
    """Where in ``body`` it is, or is missing: the location without the names of forms."""
    loc = error["loc"][1:]
    path = []
    for part in loc:
        named, numbered = isinstance(body, dict), isinstance(body, list) and isinstance(part, int)
        if (named and part in body) or (numbered and part < len(body)):
            body = body[part]
            path.append(str(part))
    if error["type"] == "missing":
        path += map(str, loc[-1:])
    return tuple(path)
