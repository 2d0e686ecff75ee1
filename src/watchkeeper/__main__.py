"""`python -m watchkeeper`: the command-line interface."""

from __future__ import annotations

import sys

from watchkeeper.cli import main

sys.exit(main())
