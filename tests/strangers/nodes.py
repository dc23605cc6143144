"""How to run the client in JavaScript."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest


@functools.cache
def node_flags() -> list[str] | str:
    """Flags with which Node.js has WebSocket; a sentence if there is no Node.js that has it."""
    found = shutil.which("node")
    if found is None:
        return "there is no Node.js (on Debian: apt-get install nodejs)"
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    if (major, minor) < (20, 10):
        return f"Node.js {version} has no WebSocket: 20.10 or newer is needed"
    return ["--experimental-websocket", "--no-warnings"] if major < 22 else []


def node(program: Path) -> list[str]:
    """The command that runs a program with Node.js; skips the test where that is missing."""
    flags = node_flags()
    if isinstance(flags, str):
        pytest.skip(flags)
    return ["node", *flags, str(program)]
