"""`python -m vargface`: the command line."""

import sys

from vargface.cli import main

sys.exit(main())
