"""Hypothesis strategies for everything that travels: values, changes, entries, messages.

For our tests and for those of other people's stores, transports and clients. Needs hypothesis.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from changefeed.batch import Entry, batch_digest
from changefeed.change import Change, Filter, Position, Resource
from changefeed.wire import messages as m
from changefeed.wire.changes import encode_change

SEQ_MAX = 2**53 - 1
_LIMIT = 2**31


def seqs(low: int = 1, high: int = SEQ_MAX // 2) -> st.SearchStrategy[int]:
    return st.integers(low, 200) | st.integers(low, high)


def unicode_text(low: int = 0, high: int = 20) -> st.SearchStrategy[str]:
    """Any text that has a UTF-8 form."""
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=high)


def printable(low: int = 1, high: int = 20) -> st.SearchStrategy[str]:
    return unicode_text(low, high).filter(str.isprintable)


feed_names = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)
words = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,10}", fullmatch=True)
field_names = st.from_regex(r"[a-z\u00e9_][A-Za-z0-9_.\u4e2d-]{0,10}", fullmatch=True)
ids = unicode_text(1, 40)
terms = st.from_regex(r"[0-9a-f]{8}", fullmatch=True)
lineages = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
codes = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z]{1,5}){0,2}", fullmatch=True)
seconds = st.floats(0, 1e6)
times = st.integers(0, 2**45)


def positions(seq: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Position]:
    return st.builds(Position, lineages, st.integers(0, 10**6), terms, seq if seq is not None else seqs(0))


_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-200, 200)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | unicode_text()
    | st.binary(max_size=20)
)
_keys = unicode_text(0, 8) | st.sampled_from(["$bytes", "$int", "$map", "a", "b"])

#: Bodies: JSON values, bytes and 64-bit integers, with names that the JSON form must escape.
values: st.SearchStrategy[Any] = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)

changes: st.SearchStrategy[Change] = st.builds(
    Change,
    resource=words,
    id=ids,
    op=st.sampled_from(["create", "update", "delete"]) | words,
    fields=st.none() | st.lists(field_names, max_size=4).map(tuple),
    body=values,
    version=st.none() | st.integers(0, 2**63 - 1),
    meta=st.none() | st.dictionaries(_keys, values, max_size=3),
)

filters: st.SearchStrategy[Filter] = st.builds(
    Filter,
    resources=st.dictionaries(words, st.lists(field_names, max_size=3).map(tuple), max_size=3),
    ids=st.frozensets(ids, max_size=3),
    ops=st.frozensets(words, max_size=3),
)

json_details = st.dictionaries(
    unicode_text(1, 8),
    st.none() | st.booleans() | st.integers(-SEQ_MAX, SEQ_MAX) | unicode_text() | st.lists(st.booleans(), max_size=2),
    max_size=3,
)

limits: st.SearchStrategy[m.Limits] = st.builds(
    m.Limits,
    change_bytes_max=st.integers(1, 2**30),
    group_bytes_max=st.integers(1, 2**30),
    frame_bytes_max=st.integers(1, 2**30),
    in_flight_max=st.integers(1, 1000),
    heartbeat_s=seconds,
    heartbeat_dead_s=seconds,
)

resources: st.SearchStrategy[Resource] = st.builds(
    Resource, words, st.none() | st.lists(field_names, max_size=3).map(tuple), st.none() | printable(0, 20)
)


@st.composite
def groups_of_changes(draw: st.DrawFn, most: int = 4) -> tuple[tuple[int, ...], bytes]:
    """(sizes, payload) of a batch."""
    groups = draw(st.lists(st.lists(changes, min_size=1, max_size=3), min_size=1, max_size=most))
    payload = b"".join(encode_change(change, _LIMIT) for group in groups for change in group)
    return tuple(map(len, groups)), payload


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """One entry, with a true batch digest and any chain digest."""
    sizes, payload = draw(groups_of_changes())
    number = draw(seqs())
    return Entry(
        epoch=draw(st.integers(1, 10**6)),
        term=draw(terms),
        seq=draw(seqs()),
        time=draw(times),
        publisher=draw(words),
        incarnation=draw(st.integers(0, 10**6)),
        after=draw(st.integers(0, number - 1)),
        number=number,
        sizes=sizes,
        payload=payload,
        batch_digest=batch_digest(sizes, payload),
        digest=draw(st.binary(min_size=32, max_size=32)),
    )


@st.composite
def publishes(draw: st.DrawFn) -> m.Publish:
    sizes, payload = draw(groups_of_changes())
    number = draw(seqs())
    return m.Publish(draw(st.integers(0, number - 1)), number, sizes, payload)


@st.composite
def events(draw: st.DrawFn) -> m.Events:
    """A frame whose runs could have been cut from entries: dense, filtered, with groups and without."""
    after = seq = draw(seqs(0))
    runs = []
    for _ in range(draw(st.integers(0, 3))):
        seq += draw(st.integers(0, 3))
        sizes, payload = draw(groups_of_changes(3))
        count = sum(sizes)
        dense = draw(st.booleans())
        places: list[int] = []
        groups: list[tuple[int, int]] = []
        for size in sizes:
            first = seq + 1
            for _ in range(size):
                seq += 1 if dense else draw(st.integers(1, 3))
                places.append(seq)
            groups.append((first, size))
        alone = len(sizes) == count and all(first == place for (first, _), place in zip(groups, places, strict=True))
        runs.append(
            m.Run(
                draw(st.integers(1, 10**6)),
                draw(terms),
                draw(times),
                draw(words),
                places[0] if dense else tuple(places),
                None if alone else tuple(groups),
                payload,
            )
        )
    return m.Events(after, draw(positions(st.just(seq + draw(st.integers(0, 3))))), tuple(runs))


@st.composite
def listeds(draw: st.DrawFn) -> m.Listed:
    """A part of a snapshot's list: objects in order, each with the event that was its latest."""
    snapshot = draw(positions(seqs()))
    found = {(change.resource.encode(), change.id.encode()): change for change in draw(st.lists(changes, max_size=4))}
    runs = tuple(
        m.Run(
            draw(st.integers(1, 10**6)),
            draw(terms),
            draw(times),
            draw(words),
            draw(seqs()),
            None,
            encode_change(found[key], _LIMIT),
        )
        for key in sorted(found)
    )
    last = not runs or draw(st.booleans())
    return m.Listed(snapshot, runs, last, snapshot.seq + draw(st.integers(0, 9)) if last else 0)


answers = st.builds(
    m.Answer, number=seqs(), count=st.integers(1, 5), first=positions(seqs()), repeated=st.booleans()
) | st.builds(
    m.Answer,
    number=seqs(),
    count=st.integers(1, 5),
    first=st.none(),
    code=codes,
    message=unicode_text(),
    details=json_details,
)
starts = (
    st.builds(m.Start, at=st.sampled_from(["beginning", "now", "snapshot"]))
    | st.builds(m.Start, position=positions())
    | st.builds(m.Start, time=times)
    | st.builds(m.Start, at=st.just("snapshot"), snapshot=positions(seqs()), listed=st.tuples(words, ids))
)
faults = st.builds(m.Fault, codes, unicode_text(), st.booleans(), json_details)
opens = st.builds(
    m.Open,
    feed=feed_names,
    publisher=words,
    session=printable(),
    named=st.booleans(),
    incarnation=st.none() | st.integers(0, 10**6),
    last_receipt=st.none() | positions(),
)
openeds = st.builds(
    m.Opened,
    feed=feed_names,
    instance=printable(),
    process=printable(),
    leader=printable(0),
    epoch=st.integers(0, 10**6),
    incarnation=st.integers(0, 10**6),
    last_number=seqs(0),
    limits=limits,
    resources=st.lists(resources, max_size=3).map(tuple),
    snapshot=st.booleans(),
)

client_messages: st.SearchStrategy[Any] = (
    st.builds(
        m.Subscribe,
        feed=feed_names,
        start=starts,
        name=printable(),
        filter=filters,
        groups=st.booleans(),
        client=printable(0),
        whole=seqs(0),
        newest=st.none() | positions(),
    )
    | st.builds(m.Handled, positions())
    | st.builds(m.Beat, st.integers(0, 10**6), seqs(0), seconds)
    | opens
    | publishes()
)
server_messages: st.SearchStrategy[Any] = (
    st.builds(
        m.Subscribed,
        feed=feed_names,
        instance=printable(),
        process=printable(),
        position=positions(),
        head=positions(),
        leader=printable(0),
        epoch=st.integers(0, 10**6),
        limits=limits,
    )
    | events()
    | listeds()
    | st.builds(m.Beat, st.integers(0, 10**6), seqs(0), seconds)
    | st.builds(m.Redirect, st.lists(printable(), max_size=3).map(tuple), seconds)
    | faults
    | openeds
    | answers
    | st.builds(m.Reopen, printable(0))
)
peer_messages: st.SearchStrategy[Any] = (
    st.builds(m.PeerHello, feed_names, printable(), printable(), printable(0), st.none() | positions())
    | st.builds(
        m.PeerBeat,
        name=printable(),
        process=printable(),
        state=st.sampled_from(["leading", "fencing", "following"]),
        epoch=st.integers(0, 10**6),
        term=terms,
        tail=st.none() | positions(),
        log_ok=st.booleans(),
        log_slow_s=seconds,
        leaving=st.booleans(),
        successor=printable(0),
    )
    | st.builds(m.Entries, positions(), st.lists(entries(), max_size=3).map(tuple))
    | st.builds(m.PeerOpen, st.integers(0, 1000), opens)
    | st.builds(m.PeerOpened, st.integers(0, 1000), openeds, st.none())
    | st.builds(m.PeerOpened, st.integers(0, 1000), st.none(), faults)
    | st.builds(m.PeerPublish, st.integers(0, 1000), words, st.integers(0, 10**6), publishes())
    | st.builds(m.PeerAnswer, st.integers(0, 1000), answers)
    | st.builds(m.PeerClose, st.integers(0, 1000))
    | st.builds(m.Ask, feed_names, printable())
    | st.builds(m.Said, st.none() | seconds, seqs(0))
    | faults
)
