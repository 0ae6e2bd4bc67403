"""`python -m flerm_client.cli`, as torchrun starts it."""

import sys

from flerm_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
