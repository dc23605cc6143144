"""The command line `changefeed`: one module per command, no logic.

command.py  what a command is; the table of all commands (a new one is a line there)
parser.py   argv, environment and TOML -> a command and its values; help
output.py   lines for people or JSON lines; progress; errors
run.py      signals, errors, exit status; `main`

    serve.py publish.py tail.py status.py feeds.py feed_declare.py feed_set.py verify.py dev.py demo.py
    conformance.py simulate.py
"""

from changefeed.cli.run import main

__all__ = ["main"]
