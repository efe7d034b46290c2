"""`ubend predict --cluster`: what the driver and the processes do, without Ray and with it."""

import contextlib
import importlib.util
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from support import ROOT, namespace
from support.commands import parse, predict
from support.discs import draw_disc
from support.local_cluster import Died, LocalCluster, install
from support.models import make_bundle, save_model
from support.refusal import check, invoke, raises, refused
from ubend.core.errors import DataError, FilesError, MissingPackageError, OutputError, SettingError
from ubend.models.model_file import save_bundle
from ubend.tasks import cluster
from ubend.tasks.cluster_worker import WorkerTask
from ubend.tasks.expand import read_file_list


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`images` (10 PNG) and `model.safetensors`."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.fromarray(draw_disc(number)[0]).save(tmp_path / "images" / f"{number}.png")
    save_bundle(tmp_path / "model.safetensors", make_bundle())
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def words(place: Path, out: str, *more: object) -> tuple[object, ...]:
    return (place / "model.safetensors", place / "images", "--out", place / out, *more)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("flags", ["", "--prob uint8 --threshold 'class 2=0.3' --min-area 3 --tta"])
def test_same_folder_as_on_one_machine(place: Path, flags: str) -> None:
    """All files to the byte: masks, overlays, probabilities, shares.csv, predict.json."""
    one = predict(*words(place, "one", *shlex.split(flags)))
    two = predict(*words(place, "two", *shlex.split(flags), "--cluster", "auto"))
    assert files_of(place / "one") == files_of(place / "two")
    assert len(LocalCluster.chunks) == 3
    assert len({np.asarray(Image.open(path)).tobytes() for path in (place / "one").glob("?.png")}) > 1
    kept = [line for line in two.output.splitlines() if not line.startswith("cluster: ")]
    assert kept == one.output.replace(str(place / "one"), str(place / "two")).splitlines()


@pytest.mark.usefixtures("local")
def test_broken_and_vanished_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a line at the end, exit code 3; the others of its chunk have their files. A vanished file whose name is
    a pattern does not become the files that match."""
    (place / "images" / "broken.png").write_bytes(b"no image")
    vanishing = place / "images" / "[12].png"
    shutil.copy(place / "images" / "3.png", vanishing)
    monkeypatch.setattr(LocalCluster, "before", staticmethod(lambda _paths: vanishing.unlink(missing_ok=True)))
    result, error = invoke("predict", *words(place, "out", "--cluster", "auto"))
    assert isinstance(error, FilesError)
    assert result.exit_code == 3
    assert {getattr(line, "path", None) for line in error.problems} == {place / "images" / "broken.png", vanishing}
    names = {f"{number}{end}.png" for number in range(10) for end in ("", "_overlay")}
    assert set(files_of(place / "out")) == {*names, "shares.csv", "predict.json"}


@pytest.mark.usefixtures("local")
def test_killed_driver_resumes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the driver did not hear of: their files are its own, and are written again; the others are kept."""
    predict(*words(place, "whole"))
    real = cluster.ClusterImageJob._take

    def take(self: Any, row: dict[str, Any], reporter: Any) -> None:
        if row["index"] >= 6:
            raise Died
        real(self, row, reporter)

    with monkeypatch.context() as patch:
        patch.setattr(cluster.ClusterImageJob, "_take", take)
        with pytest.raises(Died):
            predict(*words(place, "out", "--cluster", "auto"))
    assert (place / "out" / "7.png").exists()
    (place / "out" / ".7_overlay-01234567.png").write_bytes(b"cut")
    kept = (place / "out" / "0.png").stat().st_mtime_ns
    check(refused("predict", *words(place, "out", "--cluster", "auto")), OutputError, key="--out")
    predict(*words(place, "out", "--cluster", "auto", "--resume"))
    assert LocalCluster.chunks == [[6, 7, 8, 9]]
    assert files_of(place / "out") == files_of(place / "whole")
    assert (place / "out" / "0.png").stat().st_mtime_ns == kept
    predict(*words(place, "out", "--resume"))  # without a cluster: nothing is left to do
    assert files_of(place / "out") == files_of(place / "whole")


@pytest.mark.usefixtures("local")
def test_image_that_ends_its_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by predicting its chunk one by one, and given up; the others have their files."""
    from ubend.tasks import cluster_worker

    real, started = cluster_worker.predict_images, list[int]()

    def predict_images(task: WorkerTask, predictor: Any, given: dict[int, Path]) -> list[str]:
        started.extend(given)
        if 5 in given:
            raise Died
        return real(task, predictor, given)

    monkeypatch.setattr(cluster_worker, "predict_images", predict_images)
    result, error = invoke("predict", *words(place, "out", "--cluster", "auto"))
    assert result.exit_code == 3, result.output
    check(error, FilesError, path=place / "images" / "5.png", key="memory")  # type: ignore[arg-type]
    assert started.count(5) == 3
    assert started.count(4) == 2  # with its chunk, and alone
    assert {path.name for path in (place / "out").glob("?.png")} == {f"{number}.png" for number in range(10)} - {
        "5.png"
    }


@pytest.mark.usefixtures("local")
def test_values_outside_the_training_range_are_reported_once(place: Path) -> None:
    shutil.rmtree(place / "images")
    (place / "images").mkdir()
    save_model(place / "model.safetensors", 1, "uint16")
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint16)
        pixels[:4] = 65535
        tifffile.imwrite(place / "images" / f"{number}.tif", pixels)
    one = predict(*words(place, "one")).output.splitlines()
    two = predict(*words(place, "two", "--cluster", "auto")).output.splitlines()
    warning = [line for line in one if "65535" in line]
    assert len(warning) == 1
    assert [line for line in two if "65535" in line] == warning
    assert files_of(place / "one") == files_of(place / "two")


@pytest.mark.usefixtures("local")
def test_node_that_differs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model, version or output folder ends the command in one line; nothing is written."""
    model, lock = place / "model.safetensors", place / "out" / ".ubend.lock"
    other = place / "other.safetensors"
    save_model(other, 3, "uint8")

    def fails(before: Callable[[], object], kind: type[SettingError | OutputError], key: str) -> None:
        monkeypatch.setattr(LocalCluster, "before", staticmethod(lambda _paths: before()))
        check(refused("predict", *words(place, "out", "--cluster", "auto")), kind, key=key)
        assert not list(place.glob("out/*.png"))
        shutil.rmtree(place / "out", ignore_errors=True)

    fails(lock.unlink, OutputError, "--out")
    fails(lambda: shutil.copy(other, model), SettingError, "--cluster")
    monkeypatch.setattr("ubend.tasks.cluster_worker.__version__", "0.0.7")
    fails(lambda: None, SettingError, "--cluster")


def test_without_ray(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read or written."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    error = refused("predict", *words(place, "out", "--cluster", "auto"))
    check(error, MissingPackageError, key="ray", named=["pip install 'ubend[cluster]'"])
    assert not (place / "out").exists()


def test_gpu_share(place: Path) -> None:
    """Several processes on a GPU; a part of a GPU that does not fit is refused."""
    assert cluster.share_processors(0, 16, 0.5) == (16, {"num_cpus": 1, "num_gpus": 0})
    assert cluster.share_processors(2, 16, 1.0) == (2, {"num_cpus": 0, "num_gpus": 1.0})
    assert [cluster.share_processors(2, 16, share)[0] for share in (0.5, 0.4, 0.25, 0.1)] == [4, 4, 8, 20]
    for flags in (
        ("--gpu-share", "0.5"),
        ("--cluster", "auto", "--gpu-share", "0"),
        ("--cluster", "auto", "--gpu-share", "2"),
    ):
        check(refused("predict", *words(place, "out", *flags)), SettingError, key="--gpu-share")


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None) -> None:
    """If there is a token, Ray is told to use it, as `ray start --head` does, unless the user says something else."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "kept")  # so that it is as before afterwards
    monkeypatch.setenv("HOME", str(tmp_path))
    if mode is None:
        del os.environ["RAY_AUTH_MODE"]
    else:
        os.environ["RAY_AUTH_MODE"] = mode
    cluster._set_environment()
    assert os.environ.get("RAY_AUTH_MODE") == mode
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0")
    cluster._set_environment()
    assert os.environ["RAY_AUTH_MODE"] == (mode or "token")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "kept"


def test_videos_stay_on_one_machine(place: Path) -> None:
    (place / "a.mp4").write_bytes(b"")
    error = refused(
        "predict", place / "model.safetensors", place / "a.mp4", "--out", place / "out", "--cluster", "auto"
    )
    check(error, SettingError, key="--cluster")


def test_csv_of_paths(place: Path) -> None:
    """On one machine too: relative paths start from the folder of the CSV file."""
    table = place / "list.csv"
    table.write_text(f"group,file\na,images/1.png\nb,{place / 'images' / '3.png'}\n")
    predict(place / "model.safetensors", table, "--out", place / "out")
    assert {path.name for path in (place / "out").glob("?.png")} == {"1.png", "3.png"}
    for text in ("group,path\na,images/1.png\n", "file\n", ""):
        table.write_text(text)
        with raises(DataError, path=table, key="file"):
            read_file_list(table)


def test_examples_of_the_page_parse() -> None:
    """The scripts by the shell, the manifest of Kubernetes as YAML; what they start is not run here."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    scripts, manifests = (re.findall(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("sh", "yaml"))
    assert (len(scripts), len(manifests)) == (4, 1)
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
        for line in re.findall(r"^ubend .*", script, re.M):
            parse(shlex.split(line)[1:])
    job = yaml.safe_load(manifests[0])
    assert job["kind"] == "RayJob"
    parse(shlex.split(job["spec"]["entrypoint"])[1:])
    cluster_spec = job["spec"]["rayClusterSpec"]
    for group in cluster_spec["workerGroupSpecs"]:  # required by KubeRay's schema
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster_spec["headGroupSpec"], *cluster_spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def _reason_without_ray() -> str:
    return namespace.why_none() if importlib.util.find_spec("ray") else "Ray is not installed: pip install 'ray[data]'"


needs_ray = pytest.mark.skipif(bool(_reason_without_ray()), reason=_reason_without_ray() or "Ray")


def processes_of(process: "subprocess.Popen[bytes]") -> dict[int, str]:
    """The processes in the command's namespace: id -> command line, which Ray replaces by a title."""
    wanted, titles = os.readlink(f"/proc/{process.pid}/ns/pid_for_children"), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(folder / "ns" / "pid") == wanted:
                titles[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return titles


def choose_process(process: "subprocess.Popen[bytes]", kind: str) -> int | None:
    """A process that predicts or keeps their attempts (`actor`), another one of Ray's (`worker`), or the `driver`."""
    for number, title in sorted(processes_of(process).items(), reverse=True):
        is_actor = "ImageWorker" in title or "Attempts" in title
        is_ours = {
            "actor": title.startswith("ray::") and is_actor,
            "worker": title.startswith("ray::")
            and not is_actor
            and "Agent" not in title,  # a node dies with its agents
            "driver": "-m ubend predict" in title,
        }[kind]
        if is_ours and not title.startswith(("unshare", "sh ")):
            return number
    return None


def wait_for(enough: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until something is so; the command must not end before."""
    deadline = time.monotonic() + 300
    while not enough():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
@needs_ray
def test_five_kills(tmp_path: Path, ray_home: dict[str, str]) -> None:
    """Ray Data starts another process for a killed one; after the command is killed too, --resume completes it. Every
    output is there once, equal to the byte."""
    images, moments = 300, random.Random(4)
    (tmp_path / "images").mkdir()
    for number in range(images):
        path = tmp_path / "images" / f"{number}.png"
        if number < 10:
            Image.fromarray(draw_disc(number, 256, 256)[0]).save(path)
        else:
            path.hardlink_to(tmp_path / "images" / f"{number % 10}.png")
    save_bundle(tmp_path / "model.safetensors", make_bundle())
    predict(*words(tmp_path, "whole"))
    out, log = tmp_path / "out", tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "ubend",
        "predict",
        *words(tmp_path, "out", "--cluster", "auto", "--device", "cpu"),
    ]

    def masks() -> int:
        return len([*out.glob("*_overlay.png")])

    for kinds, more in ((("actor", "worker", "driver"), []), (("actor", "driver"), ["--resume"])):
        with namespace.started([*command, *more], ray_home, log) as process:
            for kind in kinds:
                enough = masks() + moments.randrange(1, 12)
                wait_for(lambda enough=enough: masks() >= enough, process, log)  # type: ignore[misc]
                wait_for(lambda kind=kind: choose_process(process, kind) is not None, process, log)  # type: ignore[misc]
                os.kill(choose_process(process, kind), signal.SIGKILL)  # type: ignore[arg-type]
        assert masks() < images
    with namespace.started([*command, "--resume"], ray_home, log) as process:
        assert process.wait(300) == 0, log.read_text()
    assert files_of(out) == files_of(tmp_path / "whole")
