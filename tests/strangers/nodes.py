"""How to run the client in JavaScript."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def node(program: Path) -> list[str]:
    """The command for a program that uses WebSocket; skips the test where there is no Node.js that has it."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no Node.js (on Debian: apt-get install nodejs)")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    if (major, minor) < (20, 10):
        pytest.skip(f"Node.js {version} has no WebSocket: 20.10 or newer is needed")
    flags = ["--experimental-websocket", "--no-warnings"] if major < 22 else []
    return [found, *flags, str(program)]
