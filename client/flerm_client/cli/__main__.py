"""`python -m flerm_client.cli`: the form in which torchrun starts the command."""

import sys

from flerm_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
