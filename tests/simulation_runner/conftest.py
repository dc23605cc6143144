"""Lets these tests, and the workers that they start, import fake_tier.py and simulations/."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for place in (HERE, HERE.parents[1]):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
