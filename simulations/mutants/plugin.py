"""A plugin of pytest that installs the patches in $CHANGEFEED_MUTANT before any test module is imported."""

from __future__ import annotations

import json
import os

from simulations.mutants.patching import Patch, install

install(Patch(*patch) for patch in json.loads(os.environ["CHANGEFEED_MUTANT"]))
