"""Where the files of onnxruntime-web come from; only from 127.0.0.1 and from folders."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.exports import NEEDS_EXPORT, make_bundle
from support.refusal import check, contents, invoke, raises, refused_once
from support.remote_site import Listener, Site
from ubend.core.errors import DataError, OutputError, SettingError
from ubend.exporting import ort_web, web_page
from ubend.exporting.ort_web import OPTION, PACKAGE, VERSION, clear_ort_web, find_ort_web, list_ort_web
from ubend.models.model_file import save_bundle
from ubend.models.unet import UNet

FILES = {name: f"content of {name}".encode() for name in (ort_web.SCRIPT, ort_web.GLUE, ort_web.WASM)}
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the files are small ones, with their digests; npm is not installed."""
    monkeypatch.setattr(ort_web, "_SHA256", {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()})
    monkeypatch.setenv("UBEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda _name: None)
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def pack(files: dict[str, bytes]) -> bytes:
    """An archive as npm's registry gives it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in {"../../../outside": b"x", **files}.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("place", [".", "dist", "package/dist", f"node_modules/{PACKAGE}/dist"])
def test_a_folder(place: str, cache: Path, tmp_path: Path) -> None:
    write(tmp_path / "given" / place, FILES)
    assert find_ort_web(tmp_path / "given", Listener()) == FILES
    assert not cache.exists()


def test_a_folder_with_the_archive(tmp_path: Path) -> None:
    write(tmp_path / "given", {ARCHIVE: pack(FILES)})
    assert find_ort_web(tmp_path / "given", Listener()) == FILES
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    "files",
    [
        {},
        FILES | {ort_web.GLUE: b"of another version"},
        {ort_web.SCRIPT: FILES[ort_web.SCRIPT]},
        {ARCHIVE: pack(FILES)[:90]},
        {ARCHIVE: b"not an archive"},
        {ARCHIVE: pack({**FILES, ort_web.WASM: b"changed"})},
    ],
)
def test_a_wrong_folder(files: dict[str, bytes], tmp_path: Path) -> None:
    given = write(tmp_path / "given", files)
    with raises(DataError, named=[str(given)]) as caught:
        find_ort_web(given, Listener())
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with raises(DataError, path=tmp_path / "nowhere", key=OPTION):
        find_ort_web(tmp_path / "nowhere", Listener())


def test_downloaded_once(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the registry that is configured; the cache is listed and cleared with the others."""
    path = f"/npm/{PACKAGE}/-/{ARCHIVE}"
    site.files[path] = pack(FILES)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{site.url}/npm/")
    listener = Listener()
    for _turn in range(2):
        assert find_ort_web(None, listener) == FILES
    assert site.requested == [(path, None)]
    assert "MIT" in listener.said
    ((folder, size),) = list_ort_web(cache)
    assert {path.name for path in folder.iterdir()} == {*FILES, ".lock"}
    assert size == sum(map(len, FILES.values()))
    assert PACKAGE in invoke("cache")[0].output
    (folder / ort_web.GLUE).write_bytes(b"damaged")
    assert find_ort_web(None, listener) == FILES
    assert clear_ort_web(cache) >= size
    assert list_ort_web(cache) == []


def test_wrong_downloads(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays of them."""
    monkeypatch.setenv("npm_config_registry", site.url)
    with raises(DataError, named=[OPTION]):
        find_ort_web(None, Listener())
    site.files[f"/{PACKAGE}/-/{ARCHIVE}"] = pack({**FILES, ort_web.SCRIPT: b"something else"})
    with raises(DataError, key=OPTION, named=["npm pack", OPTION]):
        find_ort_web(None, Listener())
    assert {name for name in contents(cache) if not name.endswith(".lock")} == set()


def test_the_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That of the environment, else that of npm, else the public one."""
    assert ort_web._find_registry() == "https://registry.npmjs.org/"
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho https://registry.example/\n")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _name: str(program))
    assert ort_web._find_registry() == "https://registry.example/"
    program.write_text("#!/bin/sh\necho undefined\n")
    assert ort_web._find_registry() == "https://registry.npmjs.org/"
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    assert ort_web._find_registry() == "http://127.0.0.1:9/"


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the model file of an untrained network."""

    def write_model(channels: int = 3, dtype: str = "uint8", width: int = 4) -> Path:
        torch.manual_seed(1)
        bundle = make_bundle(UNet(channels, 2, width=width, depth=2).eval(), dtype)
        save_bundle(tmp_path / "model.safetensors", bundle)
        return tmp_path / "model.safetensors"

    return write_model


@NEEDS_EXPORT
def test_refusals_before_the_work(save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded, computed or written."""
    page = ["--to", "web", "--out"]
    for channels, dtype in [(3, "uint16"), (4, "uint8"), (2, "float32")]:
        error = refused_once("export", save(channels, dtype), *page, tmp_path / "page")
        check(error, SettingError, key="--to", named=[dtype, str(channels)])
    model = save()
    check(refused_once("export", model, "--single-file"), SettingError, key="--single-file")
    check(refused_once("export", model, "--ort-web", tmp_path), SettingError, key="--ort-web")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    check(refused_once("export", model, *page, tmp_path / "taken"), OutputError, path=tmp_path / "taken")
    check(refused_once("export", model, *page, tmp_path / "page.htm", "--single-file"), OutputError, named=[".html"])
    check(refused_once("export", model, *page, tmp_path / "page", "--ort-web", tmp_path / "no"), DataError, key=OPTION)
    monkeypatch.setattr(web_page, "MAX_FILE_BYTES", 10**6)
    error = refused_once("export", model, *page, tmp_path / "page.html", "--single-file")
    check(error, OutputError, key="--single-file", named=["fp16"])
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "model.safetensors"}
