"""Which changes a filter selects. Pure.

Every part of a filter that is given must match: the resource, the id, the op. Names of changed fields narrow *updates*
only: a create, a delete, any other op, and an update that names no changed field match every field filter. A subscriber
may get more than it asked for, never less.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from changefeed.change import (
    FIELD,
    FILTER_FIELDS_MAX,
    FILTER_IDS_MAX,
    FILTER_OPS_MAX,
    FILTER_RESOURCES_MAX,
    ID_BYTES_MAX,
    WORD,
    FeedSettings,
    Filter,
)
from changefeed.errors import UnknownField, UnknownResource, UsageError
from changefeed.wire.frames import Wanted


def compile_filter(filter: Filter) -> Wanted:
    """A predicate (resource, id, op, fields) -> bool that says what the filter selects."""
    resources = {name: frozenset(fields) for name, fields in filter.resources.items()}
    ids, ops = filter.ids, filter.ops

    def wanted(resource: str, id: str, op: str, fields: tuple[str, ...] | None) -> bool:
        if resources:
            named = resources.get(resource)
            if named is None:
                return False
            if named and op == "update" and fields and named.isdisjoint(fields):
                return False
        if ids and id not in ids:
            return False
        return not ops or op in ops

    def anything(resource: str, id: str, op: str, fields: tuple[str, ...] | None) -> bool:
        return True

    return wanted if filter else anything


def check_filter(filter: Filter, declared: FeedSettings) -> None:
    """Raise UsageError for a filter that is too large or names what cannot be a name; UnknownResource or UnknownField,
    with the nearest name, for one that the feed does not declare: it would never match, and nobody would notice."""
    _check_size(len(filter.resources), FILTER_RESOURCES_MAX, "resources")
    _check_size(len(filter.ids), FILTER_IDS_MAX, "ids")
    _check_size(len(filter.ops), FILTER_OPS_MAX, "ops")
    for id in filter.ids:
        if not isinstance(id, str) or not 1 <= len(id.encode(errors="replace")) <= ID_BYTES_MAX:
            raise UsageError(f"the filter's id {id!r:.80} is not text of 1 to {ID_BYTES_MAX} bytes")
    for op in filter.ops:
        if not isinstance(op, str) or not WORD.match(op):
            raise UsageError(f"the filter's op {op!r:.80} is not a word of 1 to 64 letters, digits or _.:-")
    for name, fields in filter.resources.items():
        if not isinstance(name, str) or not WORD.match(name):
            raise UsageError(f"the filter's resource {name!r:.80} is not a word of 1 to 64 letters, digits or _.:-")
        if isinstance(fields, str):
            raise UsageError(f"the filter's fields of {name!r} must be a list of names, not one text")
        _check_size(len(fields), FILTER_FIELDS_MAX, f"fields of {name!r}")
        for field in fields:
            if not isinstance(field, str) or not FIELD.match(field):
                raise UsageError(
                    f"the filter's field {field!r:.80} must be 1 to 64 characters without spaces or commas"
                )
        if declared.resources:
            _check_declared(name, fields, declared)


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise UsageError(f"the filter has {size} {what}; the limit is {limit}: subscribe to more and choose yourself")


def _check_declared(name: str, fields: Iterable[str], declared: FeedSettings) -> None:
    resource = declared.resource(name)
    if resource is None:
        raise UnknownResource(
            f"the feed declares no resource {name!r}{_nearest(name, [known.name for known in declared.resources])}"
        )
    if resource.fields is not None:
        for field in fields:
            if field not in resource.fields:
                raise UnknownField(
                    f"the feed declares no field {field!r} of {name!r}{_nearest(field, resource.fields)}"
                )


def check_declared(name: str, fields: Iterable[str] | None, declared: FeedSettings) -> None:
    """Raise UnknownResource or UnknownField for a change that the feed does not declare; no-op if it declares none."""
    if declared.resources:
        _check_declared(name, fields or (), declared)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; it declares {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else ""
