"""`ubend predict --cluster` on object storage: the memory file system of fsspec in this process, and S3 by moto."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from support import ROOT, namespace
from support.commands import predict
from support.discs import draw_disc
from support.geotiff import GEO
from support.local_cluster import Died, LocalCluster, install
from support.models import make_bundle
from support.refusal import check, invoke, refused
from ubend.core.errors import DataError, FilesError, MissingPackageError, OutputError, SettingError
from ubend.models.model_file import save_bundle
from ubend.tasks import cluster
from ubend.tasks.url_storage import as_path, is_url

_BUCKET = "memory://bucket"
_COUNT = 10


class Storage(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's file system in memory, with errors of object storage.

    Attributes:
        failure: raised by every read and write, if it is not None.
    """

    failure: Exception | None = None
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def ls(self, path: str, *args: Any, **options: Any) -> Any:
        self._fail()
        return super().ls(path, *args, **{key: value for key, value in options.items() if key != "refresh"})

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self._fail()
        return super().cat_file(path, *args, **options)

    def get_file(self, path: str, *args: Any, **options: Any) -> Any:
        self._fail()
        return super().get_file(path, *args, **options)

    def pipe_file(self, path: str, *args: Any, **options: Any) -> Any:
        self._fail()
        return super().pipe_file(path, *args, **options)

    @classmethod
    def vanish(cls) -> None:
        """Delete all buckets."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]

    def _fail(self) -> None:
        if Storage.failure is not None:
            raise Storage.failure


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    install(monkeypatch)
    fsspec.register_implementation("memory", Storage, clobber=True)
    Storage.clear_instance_cache()
    Storage.vanish()
    monkeypatch.setattr(Storage, "failure", None)
    system = Storage(use_listings_cache=False)
    yield system
    fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)


@pytest.fixture
def place(tmp_path: Path, storage: Storage) -> Path:
    """`images` and `model.safetensors` in a folder; the images are also in the bucket."""
    (tmp_path / "images").mkdir()
    for number in range(_COUNT):
        Image.fromarray(draw_disc(number)[0]).save(tmp_path / "images" / f"{number}.png")
    save_bundle(tmp_path / "model.safetensors", make_bundle())
    fill(storage, tmp_path / "images")
    return tmp_path


def fill(storage: Storage, folder: Path) -> None:
    for path in folder.iterdir():
        storage.pipe_file(f"/bucket/images/{path.name}", path.read_bytes())


def objects(storage: Storage, folder: str = "/bucket/out") -> dict[str, bytes]:
    return {name.rpartition("/")[2]: storage.cat_file(name) for name in storage.find(folder)}


def alike(files: Path | dict[str, bytes], images: Path) -> dict[str, bytes]:
    """The content of an output folder where the table has URLs of images instead of paths, and the record its size."""
    content = {path.name: path.read_bytes() for path in files.iterdir()} if isinstance(files, Path) else {**files}
    content["shares.csv"] = content["shares.csv"].replace(str(images).encode(), f"{_BUCKET}/images".encode())
    record = json.loads(content["predict.json"])
    record["files"]["shares.csv"]["outputs"]["shares.csv"] = len(content["shares.csv"])
    content["predict.json"] = json.dumps(record).encode()
    return content


def words(place: Path, *more: object, images: object = f"{_BUCKET}/images") -> tuple[object, ...]:
    return (place / "model.safetensors", images, "--out", f"{_BUCKET}/out", "--cluster", "auto", *more)


def test_urls_are_paths() -> None:
    assert [*map(str, map(as_path, ("s3://b/x.png", Path("s3://b/x.png"), "s3:/b/x.png")))] == ["s3://b/x.png"] * 3
    url = as_path("s3://bucket/a/x.png")
    assert (str(url.parent / "y.png"), url.name, url.stem, url.suffix) == ("s3://bucket/a/y.png", "x.png", "x", ".png")
    assert not any(map(is_url, ("a/x.png", "/a:/x", "C:/x", "x:y/z")))


@pytest.mark.parametrize("flags", [(), ("--prob", "uint8")])
def test_objects_equal_the_files_of_one_machine(place: Path, storage: Storage, flags: tuple[str, ...]) -> None:
    """To the byte: masks, overlays, probabilities, table, record; nothing else is left in the bucket."""
    predict(place / "model.safetensors", place / "images", "--out", place / "one", *flags)
    result = predict(*words(place, *flags))
    assert alike(objects(storage), place / "images") == alike(place / "one", place / "images")
    assert f"{_BUCKET}/out: {_COUNT}" in result.output
    assert len({content for name, content in objects(storage).items() if name[1:] == ".png"}) > 1


def test_manifest_is_last_and_outputs_appear_whole(place: Path, storage: Storage, monkeypatch: Any) -> None:
    """An output is written under a temporary name; the record of all is the last object that is written."""
    written = list[str]()
    for method in ("put_file", "pipe_file", "cp_file"):
        real = getattr(Storage, method)

        def note(self: Any, first: str, second: Any, *rest: Any, real: Any = real, method: str = method) -> Any:
            written.append((first if method == "pipe_file" else second).rpartition("/")[2])
            return real(self, first, second, *rest)

        monkeypatch.setattr(Storage, method, note)
    predict(*words(place))
    assert written[-1] == "predict.json"
    assert written.index("predict.json") < written.index("3.png") < written.index("shares.csv")
    temporary = [name for name in written if name.startswith(".3") and name.endswith(".png")]
    assert len(temporary) == 2
    assert written.index(temporary[1]) < written.index("3.png")


@pytest.mark.parametrize("where", ["pattern", "csv of URLs", "csv in the bucket", "from a folder", "to a folder"])
def test_ways_to_name_them(place: Path, storage: Storage, where: str) -> None:
    names = ["1.png", "3.png"]
    table = place / "list.csv"
    table.write_text("file\n" + "".join(f"{_BUCKET}/images/{name}\n" for name in names))
    storage.pipe_file("/bucket/list.csv", b"group,file\na,images/1.png\nb,images/3.png\n")
    images = {
        "pattern": f"{_BUCKET}/images/[13].png",
        "csv of URLs": table,
        "csv in the bucket": f"{_BUCKET}/list.csv",
        "from a folder": place / "images" / "[13].png",
        "to a folder": table,
    }[where]
    predict(place / "model.safetensors", place / "images" / "[13].png", "--out", place / "one")
    if where == "to a folder":
        predict(place / "model.safetensors", table, "--out", place / "out", "--cluster", "auto")
        assert alike(place / "out", place / "images") == alike(place / "one", place / "images")
        return
    predict(*words(place, images=images))
    assert alike(objects(storage), place / "images") == alike(place / "one", place / "images")


def test_tiffs_are_read_whole(place: Path, storage: Storage) -> None:
    """Their directory may be at the end, and a georeferenced one gives a TIFF."""
    shutil.rmtree(place / "images")
    (place / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 200, 300), np.uint8)
    tifffile.imwrite(place / "images" / "field.tif", pixels.transpose(1, 2, 0), extratags=GEO)
    tifffile.imwrite(place / "images" / "plain.tif", pixels.transpose(1, 2, 0), compression="zlib")
    fill(storage, place / "images")
    predict(place / "model.safetensors", place / "images", "--out", place / "one")
    predict(*words(place, images=f"{_BUCKET}/images/*.tif"))
    predict(*words(place, "--resume", images=f"{_BUCKET}/images/*.tif"))
    assert LocalCluster.chunks == []
    assert {"field.tif", "plain.png"} < {*objects(storage)}
    assert alike(objects(storage), place / "images") == alike(place / "one", place / "images")


def test_killed_driver_resumes_from_the_bucket(place: Path, storage: Storage, monkeypatch: Any) -> None:
    """The journal in the bucket says which outputs are complete; objects of others are refused."""
    predict(place / "model.safetensors", place / "images", "--out", place / "one")
    real = cluster.ClusterImageJob._take

    def take(self: Any, row: dict[str, Any], reporter: Any) -> None:
        if row["index"] >= 6:
            self.storage.flush()
            self.storage._put = self.storage._delete = lambda *_what: None  # nothing is written after a kill
            raise Died
        real(self, row, reporter)

    with monkeypatch.context() as patch:
        patch.setattr(cluster.ClusterImageJob, "_take", take)
        with pytest.raises(Died):
            predict(*words(place))
    assert {"7.png", ".ubend.lock", "predict.json"} <= {*objects(storage)}
    assert json.loads(objects(storage)["predict.json"])["files"] == {}
    storage.pipe_file("/bucket/out/.7_overlay-01234567.png", b"cut")
    check(refused("predict", *words(place)), OutputError, key="--out")
    kept = storage.info("/bucket/out/0.png")["created"]
    predict(*words(place, "--resume"))
    assert LocalCluster.chunks == [[6, 7, 8, 9]]
    assert alike(objects(storage), place / "images") == alike(place / "one", place / "images")
    assert storage.info("/bucket/out/0.png")["created"] == kept


def test_changed_inputs_and_foreign_objects(place: Path, storage: Storage) -> None:
    """--resume makes the outputs of a changed image again, and overwrites nothing that it did not write."""
    predict(*words(place))
    predict(*words(place, "--resume"))
    assert LocalCluster.chunks == []
    storage.pipe_file("/bucket/images/3.png", (place / "images" / "4.png").read_bytes())
    predict(*words(place, "--resume"))
    assert LocalCluster.chunks == [[3]]
    assert objects(storage)["3.png"] == objects(storage)["4.png"]
    storage.pipe_file("/bucket/out/5.png", b"of somebody else")
    storage.pipe_file("/bucket/images/5.png", b"x" + (place / "images" / "4.png").read_bytes())
    storage.pipe_file("/bucket/images/5.png", (place / "images" / "6.png").read_bytes())
    check(refused("predict", *words(place, "--resume")), OutputError, key="--out")
    assert objects(storage)["5.png"] == b"of somebody else"


def test_broken_and_vanished_objects(place: Path, storage: Storage, monkeypatch: Any) -> None:
    """Each is a line that names its URL; the others have their outputs."""
    storage.pipe_file("/bucket/images/broken.png", b"no image")
    storage.pipe_file("/bucket/images/half.png", (place / "images" / "3.png").read_bytes()[:-60])
    gone = "/bucket/images/2.png"
    monkeypatch.setattr(
        LocalCluster, "before", staticmethod(lambda _paths: storage.exists(gone) and storage.rm_file(gone))
    )
    result, error = invoke("predict", *words(place))
    assert isinstance(error, FilesError)
    assert result.exit_code == 3
    assert {line.split(".png")[0] + ".png" for line in error.problems} == {
        f"{_BUCKET}/images/{name}.png" for name in ("broken", "half", "2")
    }
    assert "ubend-" not in str(error)  # the name of a temporary folder
    names = {f"{number}{end}.png" for number in range(_COUNT) if number != 2 for end in ("", "_overlay")}
    assert {*objects(storage)} == {*names, "shares.csv", "predict.json"}


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        (PermissionError("The AWS Access Key Id you provided does not exist"), "credentials"),
        (RuntimeError("Unable to locate credentials"), "credentials"),
        (ConnectionRefusedError("connect failed"), "endpoint"),
    ],
)
def test_storage_that_refuses(place: Path, failure: Exception, named: str, monkeypatch: Any) -> None:
    """No credentials, credentials that do not fit, no answer: one line, before anything is predicted."""
    LocalCluster.chunks = []
    monkeypatch.setattr(Storage, "failure", failure)
    check(refused("predict", *words(place)), SettingError, key="paths", named=[named, f"{_BUCKET}/images"])
    error = refused("predict", *words(place, images=place / "images"))
    check(error, OutputError, key="--out", named=[named, f"{_BUCKET}/out"])
    assert LocalCluster.chunks == []


def test_bucket_that_is_not_there_or_vanishes(place: Path, storage: Storage, monkeypatch: Any) -> None:
    error = refused("predict", *words(place, images="memory://none/images"))
    check(error, SettingError, key="paths", named=["memory://none/images"])
    error = refused("predict", *words(place, images=f"{_BUCKET}/empty"))
    check(error, DataError, key="paths", named=[f"{_BUCKET}/empty"])
    monkeypatch.setattr(LocalCluster, "before", staticmethod(lambda _paths: Storage.vanish()))
    table = place / "list.csv"
    table.write_text(f"file\n{_BUCKET}/images/1.png\n{_BUCKET}/images/2.png\n")
    error = refused("predict", place / "model.safetensors", table, "--out", place / "out", "--cluster", "auto")
    check(error, SettingError, key="paths", named=[f"{_BUCKET}/images/"])
    fill(storage, place / "images")
    check(refused("predict", *words(place)), OutputError, key="--out", named=[f"{_BUCKET}/out"])


def test_missing_packages_and_one_machine(place: Path, monkeypatch: Any) -> None:
    """Without s3fs: the pip line. Without --cluster, a URL is refused before a folder of its name is made."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    sys.modules["fsspec.registry"]._registry.pop("s3", None)
    error = refused("predict", *words(place, images="s3://bucket/images"))
    check(error, MissingPackageError, key="fsspec", named=["pip install 'ubend[cluster]'"])
    monkeypatch.chdir(place)
    for given in ([f"{_BUCKET}/images", "--out", place / "x"], [place / "images", "--out", f"{_BUCKET}/out"]):
        check(refused("predict", place / "model.safetensors", *given), SettingError, key="--cluster")
    assert {path.name for path in place.iterdir()} == {"images", "model.safetensors"}
    shutil.rmtree(place / "images")


def _reason_without_s3() -> str:
    missing = [name for name in ("ray", "s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else namespace.why_none()


@pytest.mark.slow
@pytest.mark.skipif(bool(_reason_without_s3()), reason=_reason_without_s3() or "S3")
def test_s3_on_a_ray_cluster(place: Path, ray_home: dict[str, str]) -> None:
    """Objects as the files of one machine, to the byte; a bucket that is not there and missing credentials are a line
    each."""
    predict(place / "model.safetensors", place / "images", "--out", place / "one")
    log, script = place / "log", ROOT / "tests" / "support" / "s3_prediction.py"
    with namespace.started([sys.executable, script, place], ray_home, log) as process:
        assert process.wait(400) == 0, log.read_text()
    lines = [line for line in log.read_text().splitlines() if line.startswith("refused")]
    assert len(lines) == 2, log.read_text()
    assert lines[0].startswith("refused 2: ")
    assert "s3://nowhere/images" in lines[0]
    assert lines[1].startswith("refused 2: ")
    assert "credentials" in lines[1]
    made = {path.name: path.read_bytes() for path in (place / "objects").iterdir()}
    made["shares.csv"] = made["shares.csv"].replace(b"s3://cells", _BUCKET.encode())
    assert alike(made, place / "images") == alike(place / "one", place / "images")
