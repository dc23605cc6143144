"""Lets these tests import simulations/, which is no package of the library."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
