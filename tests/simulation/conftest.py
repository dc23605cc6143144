"""Lets the tests of this folder share slices.py (tests are imported by path, not as a package)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
