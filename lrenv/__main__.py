"""`python -m lrenv`: the command line, wherever the `lrenv` command isn't on the path."""

import sys

from lrenv.cli import main

sys.exit(main())
