"""Seconds until `ubend --help` and `ubend fit --help` have answered, as whole processes.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

RUNS = 11


def main() -> None:
    print(f"Python {sys.version.split()[0]}, {RUNS} runs each after one warm-up")
    for command in (["--help"], ["fit", "--help"]):
        seconds = []
        for _ in range(RUNS + 1):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "ubend", *command], check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
        counted = seconds[1:]
        print(
            f"ubend {' '.join(command):12} median {statistics.median(counted):.3f} s"
            f"  ({min(counted):.3f} to {max(counted):.3f})"
        )


if __name__ == "__main__":
    main()
