"""Deliberate bugs: what the simulation must catch, or it proves nothing. None of them is in the production code.

    python -m simulations.mutants [--only M4] [--seeds N] [--runs R] [--jobs J] [--write]

    patching.py      one replacement of source text; the import hook that applies them in a fresh process
    mutant.py        what a mutant is: a bug, or a defence that is switched off
    catalogue.py     all of them by name; stores.py leader.py publisher.py subscriber.py election.py hold them
    worker.py        the process that imports the patched code and runs seeds until one breaks a promise
    harness.py       which mutants run, alone and with what hides them; the measurements
    results.json     what was measured last; table.py makes docs/internals/mutants.md of it
    code/            small changes of any line of the machines and checkers, and the tests that must see them

A mutant is text: what stands in a module now, and what stands there instead. The old text must be found exactly once
in the present source; one that no longer applies is an error, not a mutant less.
"""
