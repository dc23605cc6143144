"""The programs of a run as processes: started (again, with the next life), signalled, looked at. Synchronous."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from changefeed.testing.tied import leash, tied
from simulations.chaos.shim import Numbers

ROOT = Path(__file__).resolve().parents[2]


_ERROR: Final = re.compile(r"(?!(Base)?ExceptionGroup)[A-Za-z_][A-Za-z0-9_.]*(Error|Exception|Interrupt|Exit)\b.*")


def errors_of(lines: Sequence[str]) -> list[str]:
    """The errors that tracebacks among these lines name: the first line behind each that names one, or those of a
    group's parts."""
    found, inside, grouped = [], False, False
    for line in lines:
        text = line.strip(" |+-")
        if text.startswith(("Traceback (most recent", "Exception Group Traceback")):
            inside, grouped = True, grouped or "Group" in text
        elif inside and (line[:1] not in ("", " ") or grouped):
            if _ERROR.fullmatch(text):
                found.append(text)
                inside = grouped
            if line[:1] not in ("", " "):
                inside = grouped = False
    return found


class Node:
    """One node of the run. Its program is told all it needs as JSON; `given` makes that anew for each life.

    life: which run of it this is, 0 before the first. gauge: what it shows of itself; kept over its death. wanted: it
    should run: whoever finds that it does not may start it again.
    """

    def __init__(
        self,
        name: str,
        module: str,
        folder: Path,
        gauges: tuple[str, ...],
        given: Callable[[int], dict[str, Any]],
        *,
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ahead_s: int = 0,
    ) -> None:
        self.name = name
        self.life = 0
        self.wanted = False
        self.history = folder / f"{name}.jsonl"
        self.output = folder / f"{name}.log"
        self.gauge = Numbers(folder / f"{name}.gauge", gauges)
        self._module = module
        self.given = given
        # A time namespace is entered by exec: the process id stays.
        own_time = ["unshare", "-T", f"--monotonic={ahead_s}"] if ahead_s else []
        self._within = [*within, *own_time]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def status(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self.life += 1
        self.wanted = True
        for name in {"ready", "leading"} & set(self.gauge.names):
            self.gauge.set(name, 0)  # what its last life said does not hold for this one
        given = {"name": self.name, "life": self.life, "history": str(self.history), "gauge": str(self.gauge.path)}
        told = json.dumps({**given, **self.given(self.life)})
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*self._within, *tied(self._module, told)],
                stdin=leash(),
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def send(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    @property
    def frozen(self) -> bool:
        """Whether it stands still, whoever stopped it."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return self.running and stat.rpartition(")")[2].split()[0] in ("T", "t")

    def tracebacks(self) -> list[str]:
        """The errors of the tracebacks that it printed, those inside of groups too: what nobody expected."""
        return errors_of(self.output.read_text(errors="replace").splitlines()) if self.output.exists() else []

    def said(self, lines: int = 5) -> str:
        """Its last words, on one line."""
        if not self.output.exists():
            return "it said nothing"
        found = self.output.read_text(errors="replace").splitlines()[-lines:]
        return "it said: " + (" | ".join(found) or "nothing")
