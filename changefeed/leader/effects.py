"""What the leader's machine asks its driver to do, and what the driver brings back from the log (pure values).

Effects of batches come in lists, in the order in which they must be performed. An opening publisher is a dialogue of
single *steps*: the machine says what it needs next, until it admits or denies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from changefeed.batch import Entry
from changefeed.errors import ChangefeedError
from changefeed.wire.messages import Answer

if TYPE_CHECKING:
    from changefeed.change import Key
    from changefeed.log import Latest, Look, PublisherState


@dataclass(frozen=True, slots=True)
class LookUp:
    """Read from the log, then take a look that begins after the other reads, and bring back `Facts` for `token`.

    The look comes last: if it still finds this term's fence, then nobody else wrote while the rest was read.
    state: read `publisher_state`. last: read `last_number` of (publisher, incarnation). number (0: none): find the
    entry with that number; only where there is none, find those with the numbers `after` and `end` (0: none). Where
    that entry does not reach `end`: read about `size` bytes of what follows it in the log. keys: read the snapshot's
    rows of these objects.
    """

    token: int
    publisher: str
    incarnation: int
    state: bool = False
    last: bool = False
    number: int = 0
    after: int = 0
    end: int = 0
    size: int = 0
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the log said to `asked`; parts that were not asked for are None."""

    asked: LookUp
    look: Look
    state: PublisherState | None = None
    last: int | None = None
    entry: Entry | None = None
    before: Entry | None = None
    end: Entry | None = None
    behind: Sequence[Entry] = ()
    rows: Sequence[Latest] = ()


@dataclass(frozen=True, slots=True)
class Append:
    """Append `entries` behind `expected_tail`. tries: how often that was tried before; delay_s: wait so long first."""

    expected_tail: int
    entries: tuple[Entry, ...]
    tries: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Give `answer` to whoever brought the batch; `ticket` is what came with it. publisher: whose, for the trace."""

    ticket: Any
    answer: Answer
    publisher: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Visible:
    """These entries are durable and their answers have left: subscribers may see them."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The term is over; nothing more is answered."""

    why: str


Effect = LookUp | Reply | Visible | End


@dataclass(frozen=True, slots=True)
class Hold:
    """Changes of this publisher are on their way to the log: ask `resume` again when an append has been settled."""

    token: int


@dataclass(frozen=True, slots=True)
class Give:
    """Let the log give the publisher an incarnation (`open_publisher`)."""

    token: int
    publisher: str
    named: bool


@dataclass(frozen=True, slots=True)
class Admit:
    """The publisher may publish. last_number: the last one that is durable under its incarnation."""

    incarnation: int
    last_number: int


@dataclass(frozen=True, slots=True)
class Deny:
    error: ChangefeedError


Step = LookUp | Hold | Give | Admit | Deny
