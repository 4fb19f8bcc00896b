"""``python -m medgen`` is the command line, as ``torchrun ... -m medgen`` needs it."""

import sys

from medgen.cli import main

sys.exit(main())
