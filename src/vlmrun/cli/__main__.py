"""`python -m vlmrun.cli`, which the commands for other nodes use."""

import sys

from vlmrun.cli.app import main

sys.exit(main())
