"""Whether resource and field names are among those that a feed declares. Pure; the same for publishers and filters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from changefeed.change import Resource
from changefeed.errors import UnknownField, UnknownResource


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


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; it declares {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else ""
