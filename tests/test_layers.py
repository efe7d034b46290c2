"""Imports go only to the left, so that the house can be read from one end to the other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ubend"

# Left to right. A new file gets its place here.
ORDER = [
    "language",
    "errors",
    "files",
    "config",
    "choices",
    "device",
    "teller",
    "kernels.gate",
    "kernels.maps",
    "kernels.norm",
    "kernels.norm_gradient",
    "kernels.join",
    "kernels.gpu",
    "kernels.stem",
    "kernels.reference",
    "kernels.loss",
    "kernels.augment",
    "masks.codes",
    "masks.labels",
    "data.draws",
    "pictures.raster",
    "pictures.known",
    "pictures.tiff",
    "pictures.decode",
    "data.foreground",
    "pictures.images",
    "pictures.video",
    "pictures.windows",
    "pictures.scale",
    "pictures.probabilities",
    "masks.shapes",
    "masks.sources",
    "folders.problems",
    "folders.pairs",
    "folders.naming",
    "folders.tree",
    "folders.pairing",
    "folders.layouts",
    "folders.official",
    "folders.classtable",
    "folders.splitfile",
    "folders.collection",
    "folders.coco",
    "folders.labelme",
    "folders.labelstudio",
    "folders.yolo",
    "folders.folder",
    "pictures.channels",
    "masks.survey",
    "masks.valuetable",
    "masks.classes",
    "data.splits",
    "data.sample",
    "data.store",
    "data.damage",
    "data.download",
    "data.unpack",
    "data.named",
    "data.dataset",
    "data.augment",
    "data.patches",
    "data.batches",
    "model.second_stream",
    "model.fused",
    "model.unet",
    "model.paper",
    "model.encoders",
    "model.networks",
    "model.folded",
    "model.bundle",
    "metrics.overlap",
    "metrics.panoptic",
    "objects.instances",
    "objects.table",
    "objects.truth",
    "drawing.overlay",
    "drawing.panels",
    "objects.export",
    "drawing.curves",
    "training.launch",
    "training.ranks",
    "training.syncnorm",
    "training.losses",
    "training.schedule",
    "training.run_folder",
    "training.checkpoint",
    "training.transfer",
    "training.borders",
    "training.setup",
    "training.step",
    "training.warmup",
    "training.captured",
    "training.loop",
    "training.panel",
    "inference.ahead",
    "inference.tiles",
    "inference.strips",
    "inference.predictor",
    "inference.refine",
    "inference.ensemble",
    "inference.conditions",
    "volumes.window",
    "volumes.scan",
    "evaluation.evaluate",
    "jobs.gather",
    "jobs.evaluate",
    "jobs.cache",
    "jobs.many",
    "jobs.objects",
    "jobs.scans",
    "jobs.videos",
    "jobs.predict",
    "jobs.cutout",
    "jobs.pictures",
    "jobs.data",
    "jobs.info",
    "jobs.fit",
    "jobs.demo",
    "translated",
    "commands.shared",
    "commands.training",
    "commands.using",
    "commands.folders",
    "cli",
    "__main__",
]

# These are used before anything is known to be worth a wait for torch.
WITHOUT_TORCH = [
    "language",
    "errors",
    "files",
    "config",
    "choices",
    "device",
    "teller",
    "translated",
    "commands.shared",
    "commands.training",
    "commands.using",
    "commands.folders",
    "cli",
    "masks.codes",
    "masks.labels",
    "data.draws",
    "pictures.raster",
    "pictures.known",
    "pictures.tiff",
    "pictures.decode",
    "data.foreground",
    "pictures.images",
    "pictures.windows",
    "pictures.scale",
    "masks.shapes",
    "masks.sources",
    "folders.problems",
    "folders.pairs",
    "folders.naming",
    "folders.tree",
    "folders.pairing",
    "folders.layouts",
    "folders.official",
    "folders.classtable",
    "folders.splitfile",
    "folders.collection",
    "folders.coco",
    "folders.labelme",
    "folders.labelstudio",
    "folders.yolo",
    "folders.folder",
    "pictures.channels",
    "masks.survey",
    "masks.valuetable",
    "masks.classes",
    "data.splits",
    "data.sample",
    "data.store",
    "data.damage",
    "data.download",
    "data.unpack",
    "data.named",
    "data.dataset",
    "metrics.overlap",
    "drawing.overlay",
    "drawing.panels",
    "drawing.curves",
    "training.run_folder",
    "training.launch",
]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


FILES = {_name(path): path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__init__.py"}


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, module below `ubend`) of every import anywhere in a file; `ubend` itself is ``""``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            # `from ubend.dataset import store` imports a file too
            below = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("ubend.") in FILES else module for name in below]
        else:
            continue
        found += [(node.lineno, name[6:]) for name in names if name == "ubend" or name.startswith("ubend.")]
    return found


def wrong_imports(name: str, tree: ast.AST) -> list[str]:
    """The imports of a file that do not go to the left."""
    left = {"", *ORDER[: ORDER.index(name)]}
    packages = {one.rpartition(".")[0] for one in ORDER}
    found = []
    for line, module in imports(tree):
        if module not in left or (module in packages and module):
            found.append(f"{name}, line {line}: imports ubend.{module}")
    return found


def test_every_file_has_its_place() -> None:
    assert sorted(FILES) == sorted(ORDER)


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_go_to_the_left(name: str) -> None:
    assert wrong_imports(name, ast.parse(FILES[name].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_lessons_are_not_imported(name: str) -> None:
    """They use ubend, never the reverse; their commands are found through entry points."""
    assert "ubend_lessons" not in FILES[name].read_text(encoding="utf-8")


def test_packages_import_nothing() -> None:
    """Only the outermost `__init__` names things, and those lazily."""
    for path in SOURCE.rglob("__init__.py"):
        if path.parent != SOURCE:
            assert imports(ast.parse(path.read_text(encoding="utf-8"))) == [], path


@pytest.mark.parametrize(
    "line",
    [
        "from ubend.training.loop import train",
        "import ubend.cli.app",
        "def f():\n    from ubend.tasks import fit",
        "if TYPE_CHECKING:\n    from ubend.dataset.batches import Batch",
        "from ubend.unheard_of import x",
    ],
)
def test_an_import_to_the_right_is_found(line: str) -> None:
    assert len(wrong_imports("data.store", ast.parse(line))) == 1


def test_an_import_to_the_left_is_fine() -> None:
    tree = ast.parse("import ubend\nfrom ubend import __version__\nfrom ubend.layouts import folder\nimport torch")
    assert wrong_imports("data.store", tree) == []


def test_files_that_wait_for_torch() -> None:
    """In an interpreter of its own: one after the other, so that the first that imports torch is named."""
    program = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module('ubend.' + name)\n"
        "    assert 'torch' not in sys.modules, name + ' imports torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
