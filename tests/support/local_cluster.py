"""The code of the processes of `ubend predict --cluster`, in this process, without Ray."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ubend.tasks import cluster
from ubend.tasks.cluster_worker import Attempts, ImageWorker, WorkerTask

_CHUNK = 4


class LocalCluster:
    """The place of `cluster.Cluster`: the same processes' code, in this process, a few images at a time.

    Attributes:
        before: called before the images of each chunk are predicted; a chunk is lost with its process if it raises
            `Died`, and is given to another one.
    """

    before: Callable[[list[Path]], None] = staticmethod(lambda _paths: None)
    chunks: list[list[int]]

    def __init__(self, _address: str, _gpu_share: float = 1.0) -> None:
        self.attempts = Attempts()
        LocalCluster.chunks = []

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def connect(self) -> str:
        return "cluster: 1 node, 2 CPUs, 0 GPUs"

    def map_images(self, images: Sequence[tuple[int, Path]], task: WorkerTask) -> Iterator[dict[str, Any]]:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            while True:
                worker = ImageWorker(task, self.attempts)
                try:
                    LocalCluster.before([path for _index, path in chunk])
                    paths = [json.dumps(str(path)) for _index, path in chunk]
                    rows = worker({"index": np.array([index for index, _path in chunk]), "path": np.array(paths)})
                    break
                except Died:
                    continue
            LocalCluster.chunks.append([index for index, _path in chunk])
            yield from map(json.loads, rows["row"])


class Died(BaseException):
    """A process was ended, and what it had not answered is lost."""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `LocalCluster` in the place of `Cluster`."""
    monkeypatch.setattr(cluster, "Cluster", LocalCluster)
    monkeypatch.setattr(LocalCluster, "before", staticmethod(lambda _paths: None))
    monkeypatch.setattr(
        ImageWorker, "_ask", lambda self, method, *values: getattr(self._attempts, method)(*values), raising=True
    )
