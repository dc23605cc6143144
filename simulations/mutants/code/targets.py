"""Which modules are changed, and which tests must see it: the quick ones first, since the first failure ends a run.

The checkers have mutants of their own: tests/history/checker_mutants.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Target:
    """most: how many places of it are tried, drawn from a seed, where it has more."""

    module: str
    tests: tuple[str, ...]
    most: int = 40


LEADER: Final = (
    "tests/leader/test_leader_places.py",
    "tests/leader/test_leader_machine.py",
    "tests/leader/test_leader_opening.py",
    "tests/leader/test_leader_driver.py",
    "tests/publisher/test_publisher_rerun.py",
    "tests/leader/test_leader_model.py",
)
PUBLISHER: Final = (
    "tests/publisher/test_publisher_machine.py",
    "tests/publisher/test_publisher_endings.py",
    "tests/publisher/test_publisher_places.py",
    "tests/publisher/test_publisher_rerun.py",
    "tests/publisher/test_publisher_driver.py",
    "tests/publisher/test_publisher_model.py",
)
SUBSCRIBER: Final = (
    "tests/subscriber/test_subscriber_machine.py",
    "tests/subscriber/test_subscriber_places.py",
    "tests/subscriber/test_subscriber_resume.py",
    "tests/subscriber/test_subscriber_driver.py",
    "tests/subscriber/test_subscriber_model.py",
)
ELECTION: Final = (
    "tests/election/test_election_machine.py",
    "tests/election/test_election_bars.py",
    "tests/election/test_election_silence.py",
    "tests/election/test_election_handover.py",
    "tests/election/test_election_leavers.py",
    "tests/election/test_election_driver.py",
    "tests/election/test_election_model.py",
    "tests/election/test_election_world.py",
)
SERVING: Final = (
    "tests/serving/test_serving_subscriber_machine.py",
    "tests/serving/test_serving_subscriber_starts.py",
    "tests/serving/test_serving_subscriber_session.py",
    "tests/serving/test_serving_subscriber_endings.py",
    "tests/serving/test_finding_left.py",
)
DESK: Final = ("tests/serving/test_serving_publisher_desk.py", "tests/serving/test_serving_publisher_session.py")

TARGETS: Final[dict[str, Target]] = {
    target.module: target
    for target in (
        Target("changefeed.leader.machine", LEADER, 60),
        Target("changefeed.leader.book", LEADER, 40),
        Target("changefeed.leader.refusals", LEADER, 30),
        Target(
            "changefeed.leader.retention",
            (
                "tests/leader/test_leader_places.py",
                "tests/leader/test_leader_retention.py",
                "tests/leader/test_leader_upkeep.py",
            ),
            40,
        ),
        Target("changefeed.publisher.machine", PUBLISHER, 60),
        Target("changefeed.publisher.groups", PUBLISHER, 30),
        Target("changefeed.subscriber.machine", SUBSCRIBER, 60),
        Target("changefeed.subscriber.buffer", SUBSCRIBER, 40),
        Target("changefeed.election.machine", ELECTION, 60),
        Target("changefeed.election.state", ELECTION, 30),
        Target("changefeed.election.suspicion", ELECTION, 30),
        Target("changefeed.election.views", ELECTION, 25),
        Target("changefeed.election.handover", ELECTION, 30),
        Target("changefeed.election.logwatch", ELECTION, 25),
        Target("changefeed.election.pace", ELECTION, 20),
        Target("changefeed.election.requests", ELECTION, 15),
        Target("changefeed.serving.machine", SERVING, 50),
        Target("changefeed.serving.window", ("tests/serving/test_window.py", *SERVING), 30),
        Target("changefeed.serving.desk", DESK, 30),
        Target("changefeed.serving.filters", ("tests/serving/test_filters.py",), 30),
        Target(
            "changefeed.peer.machine", ("tests/peer/test_peer_machine.py", "tests/peer/test_finding_peer_link.py"), 40
        ),
        Target("changefeed.log.rules", ("tests/log/test_log_rules.py", "tests/log/test_log_conformance.py"), 30),
        Target("changefeed.wire.frames", ("tests/wire/test_wire_frames.py",), 30),
    )
}
