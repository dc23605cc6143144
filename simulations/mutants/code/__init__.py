"""Small changes of any place of a module, and whether its tests see them: what people call mutation testing.

    python -m simulations.mutants.code [--module changefeed.leader.machine] [--most 60] [--seed 0] [--write]

    points.py      every place that is changed, and how: comparisons, and/or, not, numbers, arithmetic, statements
    targets.py     which modules, and which tests must see their changes
    run.py         one module: each change in a forked child that runs the tests until one fails
    survivors.py   what no test saw, and why that is so: results.json and equivalent.json beside this file

cosmic-ray and mutmut do the same, the one in files of the tree, the other in a copy of it; both change annotations and
sentences for people too, which is what most of their survivors are here. This one changes text while it is imported.
"""
