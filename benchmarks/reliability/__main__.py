"""Run a check of the library's reliability."""

import sys

from benchmarks.reliability import main

sys.exit(main())
