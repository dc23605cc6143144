"""The Promela models: what must hold holds in all states, and each deliberate fault is seen."""

from __future__ import annotations

import pytest

from simulations.models import spin
from simulations.models.variants import ALL, ELECTION, PROTOCOL, Variant

needs_spin = pytest.mark.skipif(bool(spin.missing()), reason=spin.missing() or "spin is here")
QUICK = [variant for variant in ALL if not variant.long]

HOLDS = Variant("protocol", "of a test", whole=True)
WHOLE = """
State-vector 92 byte, depth reached 138, errors: 0
     8502 states, stored
unreached in proctype store
\t{model}:358, state 58, "-end-"
""".format(model=spin.HERE / "protocol.pml")


@needs_spin
@pytest.mark.parametrize("variant", QUICK, ids=lambda v: f"{v.model}-{'-'.join(v.defines) or 'plain'}")
def test_what_must_hold_holds_and_what_must_break_breaks(variant: Variant) -> None:
    """Complete searches; a variant with a fault breaks exactly the promise that it is said to break."""
    result = spin.ask(variant, seconds=120)
    assert result.ok, result
    assert result.states > 0


def test_the_variants_ask_for_both_answers_of_both_models() -> None:
    """At least the variants that proof.md and the review name, under different names."""
    assert len({(v.model, v.name) for v in ALL}) == len(ALL)
    for variants, breaking in ((PROTOCOL, 13), (ELECTION, 7)):
        assert sum(bool(v.breaks) for v in variants) >= breaking
        assert any(not v.breaks for v in variants)
    assert any(v.live and v.breaks for v in ELECTION) and any(v.live and not v.breaks for v in ELECTION)


def test_a_complete_search_without_errors_holds() -> None:
    """And only such a one."""
    result = spin.read(HOLDS, WHOLE, 1.0)
    assert result.ok and result.complete and result.states == 8502


@pytest.mark.parametrize(
    "said",
    [
        WHOLE + "error: max search depth too small\n",
        WHOLE + "pan: reached -DMEMLIM bound\n",
        WHOLE.replace("errors: 0", "errors: 1"),
        WHOLE.replace('"-end-"', '"position = (position+1)"'),
        "",
        "pan: out of memory\n",
    ],
)
def test_what_was_cut_short_or_never_reached_does_not_hold(said: str) -> None:
    """A search that met a bound, an error without a name, or left lines out is no proof."""
    assert not spin.read(HOLDS, said, 1.0).ok


def test_another_promise_than_the_named_one_is_not_what_was_asked() -> None:
    """A fault must be seen by what it breaks, not by an accident of the model."""
    said = "pan:1: assertion violated ((tail==0)||no_lost_ack) (at depth 44)\n errors: 1\n 12 states, stored\n"
    assert spin.read(Variant("protocol", "x", breaks="no_lost_ack"), said, 1.0).ok
    assert not spin.read(Variant("protocol", "x", breaks="no_duplicate"), said, 1.0).ok
    cycle = "pan:1: acceptance cycle (at depth 182)\n errors: 1\n"
    assert spin.read(Variant("election", "x", breaks="stays", live=True), cycle, 1.0).ok


@needs_spin
def test_a_search_that_takes_too_long_is_not_told() -> None:
    """Bounds of time end a search; what it had not seen by then is not claimed."""
    result = spin.ask(Variant("protocol", "three terms", ("NT=3",)), seconds=0.2)
    assert not result.ok and not result.complete and "no end within" in str(result)
