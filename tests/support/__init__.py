"""What several test modules share: helpers, truths written as folders, servers with faults. No tests, no fixtures."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
