"""Ask Spin one question: translate, compile, search within bounds of memory and time, and read what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from simulations.models.variants import Variant

HERE = Path(__file__).resolve().parent
#: A search may take so much memory (MiB) and time.
MEMORY_MB = 4000
SECONDS = 600.0
#: Deeper than any search of these models goes; what is deeper is reported, and fails.
DEPTH = 1_000_000


@dataclass(frozen=True)
class Result:
    """What Spin said. broken: the promise that it saw broken, "" if none. complete: whether all states were looked at.
    steps: at which depth the broken promise was met. unreached: lines of the model that no search came to."""

    variant: Variant
    broken: str
    complete: bool
    states: int
    steps: int
    seconds: float
    unreached: tuple[int, ...] = ()
    trouble: str = ""

    @property
    def ok(self) -> bool:
        variant = self.variant
        if variant.breaks:
            return self.broken == variant.breaks
        return not self.broken and self.complete and not (variant.whole and self.unreached)

    def __str__(self) -> str:
        wanted = f"breaks {self.variant.breaks}" if self.variant.breaks else "holds"
        found = f"breaks {self.broken} after {self.steps} steps" if self.broken else "holds"
        if not self.broken and not self.complete:
            found = f"not told: {self.trouble}"
        more = f", never reached: lines {self.unreached}" if self.variant.whole and self.unreached else ""
        flags = " ".join(f"-D{d}" for d in self.variant.defines)
        return (
            f"{'ok  ' if self.ok else 'FAIL'} {self.variant.model}: {self.variant.name} [{flags}]: {found}"
            f"{'' if self.ok else f' (wanted: {wanted})'}{more}; {self.states:,} states, {self.seconds:.2f} s"
        )


def missing() -> str:
    """What is not here and must be, "" if all is."""
    names = [name for name in ("spin", "gcc") if shutil.which(name) is None]
    return f"not installed: {' and '.join(names)} (Debian: apt-get install spin gcc libc6-dev)" if names else ""


def ask(variant: Variant, *, seconds: float = SECONDS, memory_mb: int = MEMORY_MB) -> Result:
    """Run one variant. Raises RuntimeError if the model cannot be translated or compiled."""
    with tempfile.TemporaryDirectory(prefix="changefeed-model-") as place:
        flags = [f"-D{define}" for define in variant.defines]
        model = str(HERE / f"{variant.model}.pml")
        _run(["spin", "-a", *flags, *(["-DLIVE"] if variant.live else []), model], place)
        # What fails is found at once: for that, a quick compilation is worth more than a quick search.
        speed = "-O0" if variant.breaks else "-O2" if variant.long else "-O1"
        kind = ["-DNFAIR=3"] if variant.live else ["-DSAFETY"]
        _run(["gcc", speed, "-w", *kind, f"-DMEMLIM={memory_mb}", "-o", "pan", "pan.c"], place)
        search = ["./pan", f"-m{DEPTH}", *(["-a", "-f"] if variant.live else [])]
        begun = time.monotonic()
        try:
            done = subprocess.run(search, cwd=place, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return Result(variant, "", False, 0, 0, seconds, trouble=f"no end within {seconds:g} s")
        return read(variant, done.stdout + done.stderr, time.monotonic() - begun)


def read(variant: Variant, said: str, seconds: float) -> Result:
    """What a search printed, understood. Whatever is not a clear word of completeness is none."""
    states = re.search(r"^\s*(\d+(?:\.\d+)?(?:e\+\d+)?) states, stored", said, re.M)
    errors = re.search(r"errors: (\d+)", said)
    found = re.search(r"assertion violated .*?(?:\|\||\b)(\w+)\) \(at depth (\d+)\)", said)
    cycle = re.search(r"acceptance cycle \(at depth (\d+)\)", said)
    broken, steps = ("", 0)
    if found is not None:
        broken, steps = found[1], int(found[2])
    elif cycle is not None:
        broken, steps = "stays", int(cycle[1])
    elif errors is not None and errors[1] != "0":
        broken = "an error that is none of the promises"
    bounds = re.findall(r"max search depth too small|out of memory|MEMLIM bound|hash-table overflow|aborting", said)
    complete = errors is not None and not broken and not bounds
    reached = _unreached(said, Path(HERE / f"{variant.model}.pml"))
    trouble = ", ".join(dict.fromkeys(bounds)) or ("" if errors is not None else said.strip()[-200:])
    count = int(float(states[1])) if states is not None else 0
    return Result(variant, broken, complete, count, steps, seconds, reached, trouble)


def _unreached(said: str, model: Path) -> tuple[int, ...]:
    """Lines of proctypes that no search came to; the end of one that never ends is none."""
    lines = re.findall(rf'^\s*{re.escape(str(model))}:(\d+), state \d+, "(.*)"$', said, re.M)
    return tuple(sorted({int(number) for number, text in lines if text != "-end-"}))


def _run(command: list[str], place: str) -> None:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-500:]}")
