"""Model files with random headers are refused in one line or used, and take little memory.

`UBEND_HEADERS=10000 python -m pytest tests/test_model_headers.py` loads so many (minutes).
"""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from support import ROOT

FILES = int(os.environ.get("UBEND_HEADERS", 500))
PROCESSES = 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the highest memory can be reset on Linux only")
def test_hostile_headers() -> None:
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    bounds = [FILES * number // PROCESSES for number in range(PROCESSES + 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "support.hostile_headers", str(first), str(last)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for first, last in pairwise(bounds)
    ]
    found = [json.loads(process.communicate()[0]) for process in processes]
    assert [some["wrong"] for some in found] == [{}] * PROCESSES
    assert sum(some["understood"] for some in found) >= 0.01 * FILES  # measured: 2.6%
