"""Steps of a publisher's machine that its tests share."""

from __future__ import annotations

from typing import Any

from model_leader import LIMITS, change, position, settings

from changefeed.publisher.groups import Group
from changefeed.publisher.machine import PublisherMachine
from changefeed.wire.messages import Answer, Limits, Open, Opened, Publish


def make(named: bool = False, **changed: Any) -> PublisherMachine:
    return PublisherMachine("vmapi", "p", "s", settings(**changed), named=named)


def opened(
    machine: PublisherMachine, incarnation: int = 1, last: int = 0, limits: Limits = LIMITS, resources: Any = ()
) -> list[Any]:
    return machine.received(Opened("vmapi", "a", "p", "a", 1, incarnation, last, limits, resources))


def connect(machine: PublisherMachine, **options: Any) -> Open:
    machine.connected(0.0)
    message = machine.take(0.0)
    assert isinstance(message, Open)
    opened(machine, **options)
    return message


def submit(machine: PublisherMachine, *ids: str, number: int | None = None, body: object = None) -> Group:
    group = machine.encode([change(id, body=body) for id in ids])
    machine.admit(group, number)
    return group


def sent(machine: PublisherMachine, now: float = 0.0) -> list[Publish]:
    """Everything that the machine has to send."""
    found = []
    while (message := machine.take(now)) is not None:
        assert isinstance(message, Publish)
        found.append(message)
    return found


def stored(publish: Publish, seq: int, repeated: bool = False) -> Answer:
    return Answer(publish.number, sum(publish.sizes), position(seq), repeated)


def refused(publish: Publish, code: str, **details: Any) -> Answer:
    return Answer(publish.number, sum(publish.sizes), None, False, code, f"refused: {code}", details)
