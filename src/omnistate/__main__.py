"""`python -m omnistate` is `omnistate`."""

import sys

from omnistate.cli import main

sys.exit(main())
