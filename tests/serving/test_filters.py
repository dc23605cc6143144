"""Filters: which changes they select, and which filters are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.change import FeedSettings, Filter, Resource
from changefeed.declared import check_declared
from changefeed.errors import ChangefeedError, UnknownField, UnknownResource, UsageError
from changefeed.serving.filters import check_filter, compile_filter
from changefeed.testing.strategies import filters

names = st.sampled_from(["vm", "net", "disk"])
some_fields = st.none() | st.lists(st.sampled_from(["state", "alias", "owner"]), max_size=2).map(tuple)
some_filters = st.builds(
    Filter,
    st.dictionaries(names, st.lists(st.sampled_from(["state", "alias"]), max_size=2).map(tuple), max_size=2),
    st.frozensets(st.sampled_from("abc"), max_size=2),
    st.frozensets(st.sampled_from(["create", "update", "delete"]), max_size=2),
)


@given(some_filters, names, st.sampled_from("abc"), st.sampled_from(["create", "update", "delete", "x"]), some_fields)
def test_a_filter_selects_by_the_rules(
    filter: Filter, resource: str, id: str, op: str, fields: tuple[str, ...] | None
) -> None:
    """The rules once more, as sentences: each given part must match; fields narrow only updates that name some."""
    refusals = []
    if filter.ids and id not in filter.ids:
        refusals.append("another id")
    if filter.ops and op not in filter.ops:
        refusals.append("another op")
    if filter.resources and resource not in filter.resources:
        refusals.append("another resource")
    asked = set(filter.resources.get(resource, ()))
    if asked and op == "update" and fields and not asked & set(fields):
        refusals.append("an update of other fields")
    assert compile_filter(filter)(resource, id, op, fields) == (not refusals)


@given(filters)
def test_a_filter_that_names_only_words_passes_where_nothing_is_declared(filter: Filter) -> None:
    """An undeclared feed allows every name."""
    check_filter(filter, FeedSettings())


DECLARED = FeedSettings((Resource("vm", ("state", "alias")), Resource("network"), Resource("nic", ())))


@pytest.mark.parametrize(
    ("filter", "error", "sentence"),
    [
        (Filter({"netwrok": ()}), UnknownResource, "no resource 'netwrok'; did you mean 'network'?"),
        (Filter({"zzz": ()}), UnknownResource, "no resource 'zzz'; it declares network, nic, vm"),
        (Filter({"vm": ("stat",)}), UnknownField, "no field 'stat' of 'vm'; did you mean 'state'?"),
        (Filter({"vm": ("qqq",)}), UnknownField, "no field 'qqq' of 'vm'; it declares alias, state"),
        (Filter({"nic": ("mac",)}), UnknownField, "no field 'mac' of 'nic'"),
        (Filter({"v m": ()}), UsageError, "resource 'v m' is not a word"),
        (Filter({"vm": ("a b",)}), UsageError, "field 'a b' must be"),
        (Filter({"vm": "state"}), UsageError, "must be a list of names, not one text"),  # type: ignore[dict-item]
        (Filter(ids=frozenset({""})), UsageError, "is not text of 1 to 512 bytes"),
        (Filter(ids=frozenset({"é" * 257})), UsageError, "is not text of 1 to 512 bytes"),
        (Filter(ids=frozenset({5})), UsageError, "is not text"),  # type: ignore[arg-type]
        (Filter(ops=frozenset({"up date"})), UsageError, "op 'up date' is not a word"),
        (Filter(ids=frozenset(map(str, range(1001)))), UsageError, "has 1001 ids; the limit is 1000"),
        (Filter(ops=frozenset(f"o{i}" for i in range(65))), UsageError, "has 65 ops; the limit is 64"),
        (Filter({f"r{i}": () for i in range(257)}), UsageError, "has 257 resources; the limit is 256"),
        (Filter({"vm": tuple(f"f{i}" for i in range(257))}), UsageError, "has 257 fields of 'vm'; the limit is 256"),
    ],
)
def test_filters_that_could_never_match_are_refused(
    filter: Filter, error: type[ChangefeedError], sentence: str
) -> None:
    """A typo would otherwise be silence for ever."""
    with pytest.raises(error) as caught:
        check_filter(filter, DECLARED)
    assert type(caught.value) is error and sentence in str(caught.value)


def test_declared_names_pass() -> None:
    """Fields of a resource that declares none in particular are free."""
    check_filter(Filter({"vm": ("state",), "network": ("anything",), "nic": ()}, frozenset({"a"})), DECLARED)


def test_changes_are_held_to_the_declaration_too() -> None:
    """What a feed does not declare cannot be published either."""
    check_declared("vm", ("state",), DECLARED.declared)
    check_declared("vm", None, DECLARED.declared)
    check_declared("whatever", ("x",), {})
    with pytest.raises(UnknownResource):
        check_declared("vn", None, DECLARED.declared)
    with pytest.raises(UnknownField):
        check_declared("vm", ("state", "stat"), DECLARED.declared)
