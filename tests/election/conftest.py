"""Lets the tests of this folder share election_bench.py and election_world.py (tests are imported by path)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
