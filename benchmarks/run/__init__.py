"""Benchmarks of whole runs; the archive that they rehearse on is the test suite's too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))
