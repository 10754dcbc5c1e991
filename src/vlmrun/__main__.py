"""`python -m vlmrun`: the same as the command `vlmrun`."""

import sys

from vlmrun.cli.app import main

sys.exit(main())
