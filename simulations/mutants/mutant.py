"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.mutants.patching import Patch


@dataclass(frozen=True, slots=True)
class Mutant:
    """A deliberate bug ("M…"), or a defence that is switched off ("D…") because it hides bugs.

    breaks: what is wrong with it, in a sentence. rule: the words of design.md that it breaks. hidden_by: names of the
    defences (or other mutants) that make it harmless alone; with all of them it must be caught. sees: who may see it,
    alone or together ("C1" … "C16"; "crash": an assertion of ours). tests: for what the simulation cannot see because
    it lives in a part that the simulation replaces: pytest's arguments that must fail with it. twin: the same bug in
    the part that production uses, and the tests that must fail with that.
    """

    name: str
    breaks: str
    rule: str
    patches: tuple[Patch, ...]
    hidden_by: tuple[str, ...] = ()
    sees: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    twin: tuple[Patch, ...] = ()
    twin_tests: tuple[str, ...] = ()

    @property
    def is_bug(self) -> bool:
        return self.name.startswith("M")
