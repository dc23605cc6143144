"""What happened in a run, as records; and what must be true of it, as checkers. Proofs read this and nothing else.

    records.py    Record, the writers (memory; a file that SIGKILL cannot shorten) and the reader
    facts.py      the product's values (changes, events, entries) as facts of records
    view.py       a history indexed once, for all checkers: log, publishers, readers, leaders, faults
    checkers/     one file per promise, C1 to C16; `check(history)` runs them all

A simulated cluster, the chaos on real processes and a unit test write the same records, so one set of checkers judges
them all. A history is a list of records ordered by `t`; records of one instant keep the order in which they happened.
Times come from one monotonic clock (virtual, or CLOCK_MONOTONIC of one machine), in nanoseconds.

Every record has `t`, `node` (the process, or part of the harness: "a", "p1", "s0", "nemesis", "store", "end"), `life`
(which run of that node: 1, 2 …), `f` (its kind) and `feed` ("" for what is of no single feed, as most of the
nemesis). Positions are their text form where they are whole; `epoch`, `term` and `seq` stand alone where only these
are known. A `key` names one change of the run (unique, the change's `id` in most workloads); a `digest` is 16 hex
digits over a change's encoded bytes. Facts in [] may be left out: then what they would show is not judged.

    by           f          facts
    a publisher  submit     op, keys, digests, name, [heads]   before the publisher is asked; op names this group of the
                                                           run (a named publisher's rerun submits the same op again);
                                                           heads: [resource, id, op, fields or null] of each change
                 acked      op, first, last, repeated      positions of the receipt
                 failed     op, code                       surely not stored (a Refused kind)
                 unknown    op, code                       it can no longer be told
                 lost       code                           acknowledged-lost was raised
                 quit       abandoned                      this life is over (killed): ops without an outcome stay so
    an instance  elected    epoch, term, why               the log let it fence
                 fence      epoch, term, tail              what fence() returned (tail: a position, or its seq)
                 append     epoch, first, last, outcome    "stored", or the error's code
                 repeat     publisher, number              a batch that the log held already was answered
                 deposed    epoch, why
    the store    commit     epoch, term, fence, first, last, [fence_term]
                                                           inside the commit: the epoch that was fenced at that moment
                 fenced     epoch, term                    inside the fence: when it was made, whenever that is told
                 trimmed    floor                          inside the trim: nothing up to that seq is held any more
    a reader     reader     reader, filter, groups, start  once per life, first; filter: {"resources": {name: [fields]},
                                                           "ids": [], "ops": []}, each part may be missing; groups:
                                                           whole groups are applied in one step; start: "beginning",
                                                           "now" or a position: used when nothing was saved yet
                 connected  reader, instance, position, [asked]
                                                           welcome: from where it goes on; asked: what it asked for
                 event      reader, position, key, digest, publisher, group, last
                                                           given to the application
                 bookmark   reader, position               given everything up to there, with or without events
                 handled    reader, position               that position *is* saved: with its effect, or after it
                 refused    reader, code, position, earliest, head
                                                           what left the subscription; after a cannot-resume code the
                                                           reader's next life begins anew (nothing is saved)
                 quit                                      this life is over, as above; if none follows, the reader
                                                           need not reach the end
    the nemesis  fault      id, kind, target, on, [expects]    what is done; on: facts of it (lasts, point …); expects:
                                                           effects of which one must be seen ([]: none need be)
                 effect     id, what                       what was *seen* of it (session-expired, leader-changed …);
                                                           "missed": there was nothing to harm
                 over       id
                 restored   lineage, tail, [was]           the log's storage was put back to a copy (tail: its last seq)
                                                           or replaced (another lineage, tail 0; was: the old one):
                                                           what lay above is lost, and that must be told
                 heal       bound_s                        from here on nothing is done, and the run must converge
                 converged
                 want       name, count                    sets C16's floor: this run must have had so many of these
                 limit      kind, [receipts_s], [deliveries_s]   sets C15's limit: after a fault of that kind nobody
                                                           waits longer for a receipt, a delivery
                 sighting   name                           something that must be met now and then was met
    the end      log        lineage, tail, floor           the log itself, read from the store after everything (tail
                                                           and floor: positions, or their seqs)
                 entry      epoch, term, seq, publisher, incarnation, number, sizes, keys, digests, [heads], [lineage]
                                                           after `log`: what it holds. Before `log`: what was seen in it
                                                           earlier, for instance at its commit; stands in for what was
                                                           trimmed
                 effects    reader, origin, keys, [position]
                                                           what a reader's own database holds, in order; origin: the
                                                           position after which it began; position: its cursor

`want` knows: acks, events, submits, repeats, leader-changes, fenced-appends, unknown-appends, resumes, resets, trims,
faults, fault:KIND, effect:WHAT, and every name of a sighting.
"""

from __future__ import annotations

from changefeed.history.broken import Broken

__all__ = ["Broken"]
