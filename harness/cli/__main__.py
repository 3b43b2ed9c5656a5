"""`python -P -m harness.cli`, the same as `harness`."""

import sys

from harness.cli import main

sys.exit(main())
