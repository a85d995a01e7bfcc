"""How threads of OpenMP wait. Must be said before torch is imported."""

from __future__ import annotations

import os


def sleep_soon() -> None:
    """Let idle OpenMP threads look a thousand times for work, some microseconds, and then sleep; whoever set this otherwise keeps their value.

    Looking for long, the default of GNU's OpenMP, makes a step 2 to 9 times slower as soon as anything else runs; sleeping at once makes a
    small network 1.7 times slower on an idle machine (docs/log.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ["OMP_WAIT_POLICY"] = "passive"
