"""Runs the command line from a checkout; what is installed is called `changefeed` too."""

import runpy
import sys

sys.path[0] += "/.."  # the checkout instead of cmd/, where this very file would hide the package
runpy.run_module("changefeed.cli", run_name="__main__")
