"""`python -m schuss`: the command line."""

import sys

from schuss.lab.command import main

if __name__ == "__main__":
    sys.exit(main())
