"""docs/reference/bad-input.md: its sections, its rows, and how what differs from run to run is written.

Each test of a row runs the real thing and gives what came of it to `Page.holds`, which compares it with the row in the
page. With WRITE_DOCS=1 the rows are taken over instead, and the page is written at the session's end.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "docs" / "reference" / "bad-input.md"

HEAD = """# Bad input

What happens to input that is wrong, row by row: its *code* (see [errors](errors.md)), the sentence as it is printed,
and how it ends. The tests in `tests/hostile/` run each row against a real process and write this page; meanwhile a
healthy publisher and a healthy subscriber of the same instance go on: nothing else is harmed.

Parts that differ from run to run are written in capitals: PORT, PATH, DIR, POSITION, SEQ, NUMBER, ID.
"""

#: Section -> what stands below its heading.
SECTIONS = {
    "On the wire": """Raw connections to an instance. A *close code* from 4000 to 4499 means reconnect, one from 4500
to 4999 do not; *answer* means that one publish is refused and the connection goes on.""",
    "Two processes where one is meant": """Publishers, cursors, names and ports that are taken, and what became of an
earlier one.""",
    "On the command line": """Exit status: 0 done; 1 something failed; 2 usage; 3 cannot resume; 4 unreachable or
timed out; 5 not allowed; 130 Ctrl-C. Sentences go to stderr as `changefeed: SENTENCE (CODE)`.""",
    "A full disk": """The log on a file system without room. Reads go on meanwhile; once there is room, publishing
resumes by itself.""",
}
TABLE = "| input | code | sentence | ends with |\n|---|---|---|---|\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """code: of errors.md, empty if nothing went wrong. ends: close code, exit status, or what happens instead."""

    code: str
    sentence: str
    ends: str


def normal(text: str) -> str:
    """The text without what differs from run to run."""
    text = re.sub(r"\b[0-9a-f]{16}\.\d+\.[0-9a-f]{8}\.\d+\b", "POSITION", text)
    text = re.sub(r"\b127\.0\.0\.1:[1-6]\d{4}\b", "127.0.0.1:PORT", text)  # a port that was drawn
    text = re.sub(r"/[^\s:,;'\"]*(?:arena|bad)[^\s:,;'\"]*/(?=[^/\s])", "PATH/", text)
    text = re.sub(r"\bseq \d+", "seq SEQ", text)
    text = re.sub(r"\bhas \d+ bytes free", "has NUMBER bytes free", text)
    text = re.sub(r"\b(incarnation|epoch|counter stands at) \d+", r"\1 NUMBER", text)
    return re.sub(r"\s+", " ", text).strip()


def line(input: str, outcome: Outcome) -> str:
    """The row of a table. A bar would end a cell."""
    code = f"[{outcome.code}](errors.md#{outcome.code})" if outcome.code else ""
    cells = (input, code, normal(outcome.sentence), outcome.ends)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


class Page:
    """rows: of each section, by input, as they stand in the page."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
        self._writes = bool(os.environ.get("WRITE_DOCS"))
        self._order: dict[str, list[str]] = {}
        section = ""
        for text in PATH.read_text().splitlines() if PATH.exists() else ():
            if text.startswith("## "):
                section = text.removeprefix("## ")
            elif text.startswith("| ") and not text.startswith("| input |") and section in self.rows:
                self.rows[section][text.removeprefix("| ").split(" | ")[0].replace("\\|", "|")] = text

    def expects(self, section: str, inputs: list[str]) -> None:
        """The rows of a section, in order: all of them, and no other."""
        self._order[section] = inputs
        if not self._writes:
            assert list(self.rows[section]) == inputs, "rows were added or left out: write the page anew"

    def holds(self, section: str, input: str, outcome: Outcome) -> None:
        """Assert that the row is what came of it."""
        made = line(input, outcome)
        if self._writes:
            self.rows[section][input] = made
        assert self.rows[section].get(input) == made

    def text(self) -> str:
        parts = [HEAD]
        for section, below in SECTIONS.items():
            rows = self.rows[section]
            inputs = self._order.get(section, list(rows))
            listed = "".join(rows[input] + "\n" for input in inputs if input in rows)
            parts.append(f"\n## {section}\n\n{below}\n\n{TABLE}{listed}")
        return "".join(parts)

    def close(self) -> None:
        if self._writes:
            PATH.write_text(self.text())
