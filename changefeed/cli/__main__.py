"""`python -m changefeed.cli`."""

import sys

from changefeed.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
