"""`python -m harness` and `accelerate launch -m harness`, the same as `harness`."""

import sys

from harness.cli import main

if __name__ == "__main__":  # a spawned worker imports this module again under another name
    sys.exit(main())
