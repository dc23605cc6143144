"""What happened in a run, as records; and what must be true of it, as checkers. Proofs read this and nothing else.

    records.py    Record, the writers (memory; a file that SIGKILL cannot shorten) and the reader
    view.py       a history indexed once, for all checkers: log, publishers, readers, leaders, faults
    checkers/     one file per promise, C1 to C16; `check(history)` runs them all

A simulated cluster, the chaos on real processes and a unit test write the same records, so one set of checkers judges
them all. A history is a list of records ordered by `t`. Times come from one monotonic clock (virtual, or
CLOCK_MONOTONIC of one machine), in nanoseconds.

Every record has `t`, `node` (the process, or part of the harness: "a", "p1", "s0", "nemesis", "store", "end"), `life`
(which run of that node: 1, 2 …), `f` (its kind) and `feed`. Positions are their text form where they are whole; `epoch`,
`term` and `seq` stand alone where only these are known. A `key` names one change of the run (unique, the change's
`id` in most workloads); a `digest` is 16 hex digits over a change's encoded bytes.

    by           f           facts
    a publisher  submit      op, keys, digests, name        before the publisher is asked; op names this group of the run
                                                            (a named publisher's rerun submits the same op again)
                 acked       op, first, last, repeated      positions of the receipt
                 failed      op, code                       surely not stored (a Refused kind)
                 unknown     op, code                       it can no longer be told
                 lost        code                           acknowledged-lost was raised
                 quit        abandoned                      this life is over (killed): ops without an outcome stay so
    an instance  elected     epoch, term, why               the log let it fence
                 fence       epoch, term, tail              what fence() returned
                 append      epoch, first, last, outcome    stored, or the error's code
                 repeat      publisher, number              a batch that the log held already was answered
                 deposed     epoch, why
    the store    commit      epoch, term, fence, first, last   inside the commit: the fence that stood at that moment
    a reader     reader      reader, filter, groups, start  its filter as JSON; once per life
                 connected   reader, instance, position     welcome: from where it goes on
                 event       reader, position, key, digest, publisher, group, last
                 bookmark    reader, position               progress without events
                 handled     reader, position               the position saved with, or after, its effect
                 refused     reader, code, position, earliest, head
    the nemesis  fault       id, kind, target, on           what is done; on: facts of it (lasts, point …)
                 effect      id, what                       what was *seen* of it (session-expired, leader-changed, bytes-dropped …)
                 over        id
                 heal        bound_s                        from here on nothing is done, and the run must converge
                 converged
                 want        name, count                    sets C16's floor: this run must have had so many of these
                 sighting    name                           something that must be met now and then was met
    the end      log         lineage, tail, floor           the log itself, read from the store after everything
                 entry       epoch, term, seq, publisher, incarnation, number, sizes, keys, digests
                 effects     reader, origin, keys           what a reader's own database holds, in order
"""

from __future__ import annotations

from changefeed.history.broken import Broken

__all__ = ["Broken"]
