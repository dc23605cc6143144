"""Review finding 4: a retry whose entry retention has trimmed is neither sent for ever nor given somebody's receipt."""

from __future__ import annotations

from model_leader import LIMITS, change, position, settings

from changefeed.errors import OutcomeUnknown
from changefeed.publisher.groups import Settled
from changefeed.publisher.machine import PublisherMachine
from changefeed.wire.messages import Answer, Open, Opened, Publish


def machine_with(*groups: int, batch_bytes_aim: int = 2**18) -> PublisherMachine:
    """An open publisher with groups of so many changes, none of them sent."""
    machine = PublisherMachine("vmapi", "p", "s", settings(batch_bytes_aim=batch_bytes_aim))
    reconnect(machine, 0)
    for index, size in enumerate(groups):
        machine.admit(machine.encode([change(f"{index}-{n}") for n in range(size)]))
    return machine


def reconnect(machine: PublisherMachine, last_number: int) -> None:
    machine.disconnected()
    machine.connected(0.0)
    assert isinstance(machine.take(0.0), Open)
    machine.received(Opened("vmapi", "a", "p", "a", 1, 1, last_number, LIMITS))


def sent(machine: PublisherMachine) -> list[Publish]:
    found = []
    while isinstance(message := machine.take(0.0), Publish):
        found.append(message)
    return found


def unknown(publish: Publish, why: str = "it was stored and has been trimmed since") -> Answer:
    return Answer(publish.number, sum(publish.sizes), code="outcome-unknown", message=why)


def test_a_retry_of_what_was_trimmed_ends_as_unknown_and_the_rest_goes_on() -> None:
    """The batch counts as held: nothing is reopened or sent again, and what follows chains behind it."""
    machine = machine_with(2, 1, batch_bytes_aim=1)
    first = next(machine.groups())
    assert [publish.number for publish in sent(machine)] == [1, 3]

    reconnect(machine, 2)
    again = sent(machine)
    assert [publish.number for publish in again] == [1, 3]
    effects = machine.received(unknown(again[0]))

    assert effects == [Settled((first,))]
    assert isinstance(first.error, OutcomeUnknown)
    assert "trimmed" in str(first.error)
    assert first.receipt is None
    assert machine.opened
    assert sent(machine) == []
    second = next(machine.groups())
    machine.received(Answer(3, 1, position(9)))
    assert second.receipt is not None
    assert (machine.unacknowledged, machine.buffered_bytes) == (0, 0)
    machine.admit(machine.encode([change("later")]))
    assert [(publish.after, publish.number) for publish in sent(machine)] == [(3, 4)]


def test_the_unknown_answer_of_a_silent_server_gets_a_sentence() -> None:
    """A stranger's server need not say why."""
    machine = machine_with(1)
    (group,) = machine.groups()
    (publish,) = sent(machine)
    machine.received(unknown(publish, ""))
    assert "stored once" in str(group.error)


def test_what_was_refused_before_a_trimmed_retry_is_settled_with_it() -> None:
    """The unknown answer was the last one waited for: the refused batch before it gets its outcome."""
    machine = machine_with(1, 1, batch_bytes_aim=1)
    refused, trimmed = machine.groups()
    messages = sent(machine)
    assert machine.received(Answer(1, 1, code="unknown-resource", message="no such resource")) == []
    effects = machine.received(unknown(messages[1]))
    assert effects == [Settled((trimmed,)), Settled((refused,))]
    assert refused.error is not None
    assert refused.error.code == "unknown-resource"
