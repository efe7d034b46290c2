"""Seconds until `ubend --help` and `ubend fit --help` have answered, as whole processes.

python benchmarks/startup.py
"""

import subprocess
import sys
import time
from collections.abc import Sequence

from timing import make_parser, print_facts, read_facts, spread_words, summarise, write_report

COMMANDS = (["--help"], ["fit", "--help"])


def time_process(words: Sequence[str]) -> float:
    """Seconds of `ubend WORDS`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ubend", *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main(words: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="after one warm-up  [11]")
    args = parser.parse_args(words)
    facts = read_facts(None)
    print_facts(facts)
    turns = [[time_process(command) for command in COMMANDS] for _ in range(args.rounds + 1)][1:]
    rows = []
    for command, seconds in zip(COMMANDS, zip(*turns, strict=True), strict=True):
        rows.append({"name": f"ubend {' '.join(command)}", **summarise(seconds)})
        print(f"{rows[-1]['name']:18} {spread_words(rows[-1], 3)} s")
    write_report(__file__, words, args, facts=facts, unit="s", rows=rows)


if __name__ == "__main__":
    main(sys.argv[1:])
