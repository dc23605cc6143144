"""Whole clusters under virtual time whose leaders are killed, frozen, cut off: `changefeed simulate`, from a checkout.

    python simulations/failover.py [--seeds N] [--seed S] [--plan FILE] [--minutes M] [--trace] [--shrink] …

Takes what `changefeed simulate` takes: docs/reference/cli.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from changefeed.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))
