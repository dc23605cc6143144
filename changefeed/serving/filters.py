"""Which changes a filter selects. Pure.

Every part of a filter that is given must match: the resource, the id, the op. Names of changed fields narrow *updates*
only: a create, a delete, any other op, and an update that names no changed field match every field filter. A subscriber
may get more than it asked for, never less.
"""

from __future__ import annotations

from changefeed.change import FeedSettings, Filter
from changefeed.declared import check_declared
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
    filter.check()
    for name, fields in filter.resources.items():
        check_declared(name, fields, declared.declared)
