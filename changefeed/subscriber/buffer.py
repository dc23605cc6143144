"""Frames that were taken and not yet handled: at most the one that is being given out and the next. Pure.

An event is *given* when the loop gets it, and *handled* when the loop asks for the next one (or says so). Events are
given without a decision each: `advance` walks a list up to an index behind which something is to be decided.
"""

from __future__ import annotations

from changefeed.change import Event, Position

_NONE: list[Event] = []


class Buffer:
    """start: everything up to it is handled before anything was given; None: not known yet.

    total: events that were handled in all, over all frames.
    """

    def __init__(self, start: Position | None) -> None:
        self.total = 0
        self.begin(start)

    def begin(self, start: Position | None) -> None:
        """Drop everything; go on after `start`."""
        self._events = _NONE
        #: How many of the frame's events were given, how many of them are handled, and before which one to stop.
        self._given = self._done = self._stop = 0
        #: What is handled before the frame's first event, and after its last.
        self._before = self._to = start
        self._next: tuple[list[Event], Position] | None = None

    @property
    def full(self) -> bool:
        """Whether a frame waits behind the one that is being given out: no other is to be received."""
        return self._next is not None

    @property
    def outstanding(self) -> bool:
        """Whether any event is not handled yet."""
        return self._done < len(self._events) or self._next is not None

    @property
    def handled(self) -> Position | None:
        """Everything up to here is handled."""
        if self._done == len(self._events):
            return self._to
        return self._events[self._done - 1].position if self._done else self._before

    @property
    def given(self) -> Position | None:
        """Everything up to here was given to the loop."""
        if self._given == len(self._events):
            return self._to
        return self._events[self._given - 1].position if self._given else self._before

    @property
    def last_given(self) -> Event | None:
        return self._events[self._given - 1] if self._given else None

    @property
    def unfinished(self) -> bool:
        """Whether the events given last are not handled yet."""
        return self._done < self._given

    def put(self, events: list[Event], to: Position) -> None:
        """Take a frame: its events (none: a bookmark), and what it reaches to."""
        if not events:
            # It follows whatever waits: then that reaches further.
            if self._next is not None:
                self._next = (self._next[0], to)
            else:
                self._to = to
                if not self._events:
                    self._before = to
        elif self._next is not None:
            raise AssertionError("a frame was received although one waits")
        else:
            self._next = (events, to)

    def settle(self) -> None:
        """Everything given is handled."""
        self.total += self._given - self._done
        self._done = self._given

    def stop_after(self, events: int) -> None:
        """Let `advance` give at most so many more events of this frame before it says None."""
        self._stop = min(len(self._events), self._given + max(events, 0))

    def advance(self) -> Event | None:
        """The next event, up to the stop; what was given before is handled. None: ask `turn`, or decide something."""
        given = self._given
        if given < self._stop:
            self.total += given - self._done
            self._done = given
            self._given = given + 1
            return self._events[given]
        return None

    def turn(self) -> bool:
        """Go to the next frame if this one is given out; False if there is nothing to give."""
        if self._given < len(self._events):
            return True
        if self._next is None:
            return False
        self.settle()
        self._before = self._to
        self._events, self._to = self._next
        self._next = None
        self._given = self._done = self._stop = 0
        return True

    def group(self) -> list[Event]:
        """The events up to the end of the next group. Frames end at group ends, so it is whole."""
        events, start = self._events, self._given
        end = start
        while end < len(events) - 1 and not events[end].last:
            end += 1
        self._given = self._stop = end + 1
        return events[start : end + 1]
