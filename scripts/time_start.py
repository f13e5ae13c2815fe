"""Measure the start of edgevlm: best of five fresh processes each, in milliseconds.

The time of a bare interpreter is subtracted.
"""

from __future__ import annotations

import subprocess
import sys
import time

RUNS = 5
CASES = {
    "import edgevlm": ["-c", "import edgevlm"],
    "edgevlm --help": ["-m", "edgevlm", "--help"],
    "from edgevlm import VLM": ["-c", "from edgevlm import VLM"],
    "load the built-in model": ["-c", "from edgevlm import VLM; VLM.from_pretrained().close()"],
}


def best(arguments: list[str]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times) * 1000


def main() -> None:
    bare = best(["-c", "pass"])
    for name, arguments in CASES.items():
        print(f"{name:24} {best(arguments) - bare:8.1f}")


if __name__ == "__main__":
    main()
