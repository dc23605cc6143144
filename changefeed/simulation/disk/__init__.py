"""A disk that can lose its power: it records each write boundary of SQLite's files, and forgets what was not synced.

    model.py       what a disk holds after some steps, and what may survive a loss of power then (pure)
    sqlite_vfs.py  between SQLite and the files: a VFS, through ctypes, in the library that Python's sqlite3 uses
    recorded.py    RecordedDisk: the two together, for one folder
    tree.py        RecordedTree: the same for files that are written with Python's own functions
    in_place.py    the store's blocking calls without threads, for runs that must be the same each time
    workload.py    what a leader and its followers do to the log, what each was told, and what a log may hold then
    judge.py       opens a log that a loss of power has left, and says what is wrong with it
    losses.py      many losses of power of one run, also with something taken away that makes the log durable
    failures.py    what if the k-th disk call fails: every call of the log, at every one of its disk calls

The production store (`sqlite:FOLDER`) runs on it unchanged:

    with RecordedDisk(folder) as disk:                  # raises NoSharedSqlite where this cannot work
        log = await SqliteLogStore("sqlite:", folder).open("vmapi")
        ...
        loss = disk.crash(random.Random(7))             # power is gone and back; folder holds what survived
        log = await SqliteLogStore("sqlite:", folder).open("vmapi")     # the old one is dead: its writes fail

`disk.count` is the number of steps done so far. `disk.faulty` makes single calls fail. With `keep=True`
`disk.survivors(at, chance)` tells what a loss of power after `at` steps would have left, for any `at`, as often as
wanted. Several disks at once: one per folder. Files elsewhere cost one look at their folder's name when they are
opened; files of the folder cost about 5 µs per write. No task, thread or timer is involved.

In a simulated run: the store takes `run_sync=run_in_place`, so that no thread is involved, and `seed_sqlite(seed)`
once before it makes also the salts in the write-ahead log the same each time. Put the folder on a tmpfs if there is
one: syncs are really done.
"""

from changefeed.simulation.disk.in_place import calls_in_place, run_in_place
from changefeed.simulation.disk.model import Disk, Manner
from changefeed.simulation.disk.recorded import Call, Fault, Loss, RecordedDisk
from changefeed.simulation.disk.sqlite_vfs import NoSharedSqlite, seed_sqlite

__all__ = [
    "Call",
    "Disk",
    "Fault",
    "Loss",
    "Manner",
    "NoSharedSqlite",
    "RecordedDisk",
    "calls_in_place",
    "run_in_place",
    "seed_sqlite",
]
