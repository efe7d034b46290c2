"""`python -m ubend_runtime`."""

import sys

from .portable.command import main

sys.exit(main())
