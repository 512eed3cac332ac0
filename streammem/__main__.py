"""``python -m streammem`` is the command line."""

import sys

from streammem.cli import main

sys.exit(main())
