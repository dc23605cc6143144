"""Whether a change names only what its feed declares; refused before it is numbered. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from changefeed.change import Change, Resource
from changefeed.errors import UnknownField, UnknownResource


def check_declared(feed: str, change: Change, resources: Mapping[str, Resource]) -> None:
    """Raises UnknownResource or UnknownField, with the nearest name. resources: by name, at least one."""
    declared = resources.get(change.resource)
    if declared is None:
        raise UnknownResource(
            f"feed {feed} declares no resource {change.resource!r}{_nearest(change.resource, resources)}"
        )
    if declared.fields is None:
        return
    for name in change.fields or ():
        if name not in declared.fields:
            raise UnknownField(
                f"resource {change.resource!r} of feed {feed} declares no field {name!r}"
                f"{_nearest(name, declared.fields)}"
            )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
