"""Whether what is published or asked for is as the feed's settings want it: names among the declared ones, the same for
publishers and filters; bodies where the feed keeps a snapshot. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from changefeed.change import Change, Resource
from changefeed.errors import BodyMissing, UnknownField, UnknownResource

#: Ops whose change needs a body on a feed that keeps a snapshot.
WITH_BODY: Final = frozenset({"create", "update"})


def check_declared(name: str, fields: Iterable[str] | None, declared: Mapping[str, Resource]) -> None:
    """Raise UnknownResource or UnknownField, with the nearest name, for what the feed does not declare.

    declared: by name; empty: every name is allowed. fields: names of changed fields, or None.
    """
    if not declared:
        return
    resource = declared.get(name)
    if resource is None:
        raise UnknownResource(f"the feed declares no resource {name!r}{_nearest(name, declared)}")
    if resource.fields is None:
        return
    for field in fields or ():
        if field not in resource.fields:
            raise UnknownField(f"the feed declares no field {field!r} of {name!r}{_nearest(field, resource.fields)}")


def check_change(change: Change, declared: Mapping[str, Resource], snapshot: bool) -> None:
    """Raise what refuses a change: UnknownResource, UnknownField, and BodyMissing if the feed keeps a snapshot."""
    check_declared(change.resource, change.fields, declared)
    missing = body_missing(change.resource, change.id, change.op, change.body) if snapshot else None
    if missing is not None:
        raise missing


def body_missing(resource: str, id: str, op: str, body: object) -> BodyMissing | None:
    """Why a feed that keeps a snapshot refuses a change; None if it does not: it has a body, or needs none."""
    if body is not None or op not in WITH_BODY:
        return None
    return BodyMissing(
        f"the {op} of {resource} {id!r} has no body, and this feed keeps a snapshot: whoever starts with it would be "
        "given an object without content; publish the whole object in `body`"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; it declares {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else ""
