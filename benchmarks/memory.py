"""Peak memory of a process that charges: a run of 10,000 against one of 1,000."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.world import Result

SMALL, LARGE = 1_000, 10_000
ALLOWED = 1.15
_CHILD = """
import sys
from benchmarks import charging
charging.LATENCY_MS = 0
charging.THREADS = 16
charging.main(int(sys.argv[1]))
from benchmarks.world import peak_memory_mib
print(peak_memory_mib())
"""


def main() -> list[Result]:
    small, large = _peak(SMALL), _peak(LARGE)
    return [
        Result(
            f"peak memory, {LARGE:,} due against {SMALL:,}",
            f"{large:.0f} MiB against {small:.0f} MiB ({large / small:.2f})",
            f"<= {ALLOWED}",
            large / small <= ALLOWED,
        )
    ]


def _peak(charges: int) -> float:
    done = subprocess.run([sys.executable, "-c", _CHILD, str(charges)], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    for result in main():
        print(result)
