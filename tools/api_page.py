"""Write docs/api.md from the signatures and docstrings of the public names.

make api
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ubend
from ubend import api
from ubend.evaluation import comparison, intervals, score_tables
from ubend.portable import pixel_size
from ubend.tasks import reading

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
INTRO = """# Python API

`import ubend`; names are imported when first used, so that this does not wait for torch. This page is written by
`make api` from the docstrings."""
SECTIONS: dict[str, list[Any]] = {
    "Train, score, use": [ubend.fit, ubend.resume, ubend.evaluate, ubend.compare, ubend.report, ubend.load],
    "Predict files": [ubend.predict, ubend.objects, ubend.cutout],
    "Export": [ubend.export],
    "Data": [ubend.data, ubend.read_folder, ubend.read_image, ubend.read_scan, ubend.draw_sample],
    "Models and predictions": [ubend.UNet, ubend.Predictor, ubend.Ensemble, ubend.Prediction, ubend.LabelMap],
    "Results": [
        ubend.FitResult,
        ubend.Scores,
        score_tables.SizeScores,
        score_tables.Averages,
        score_tables.PerClass,
        score_tables.ImageScores,
        ubend.Comparison,
        comparison.ModelPair,
        comparison.ChangedImage,
        intervals.Interval,
        reading.DataFolder,
        reading.DataPair,
        reading.ImageData,
        reading.ScanData,
        pixel_size.PixelSize,
        ubend.Reporter,
    ],
    "Errors": [
        ubend.UbendError,
        ubend.DataError,
        ubend.PairError,
        ubend.FilesError,
        ubend.SettingError,
        ubend.MissingPackageError,
        ubend.OutputError,
        ubend.ModelFileError,
        ubend.TrainingError,
    ],
}
# Of a class that is not a record: whether it is made by users, and its members for them.
MEMBERS = {
    "UNet": (True, set[str]()),
    "Predictor": (True, {"__call__", "predict"}),
    "Ensemble": (True, {"__call__", "predict"}),
    "Reporter": (True, {"report"}),
    "LabelMap": (False, {"classes"}),
}
CONSTANTS = """## Constants

`ubend.IGNORED` = 255: class index of a pixel that is neither trained on nor scored.

`ubend.__version__`: the version, a string.
"""
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises):")
_ITEM = re.compile(r"^([\w, ]+?):", re.MULTILINE)


def write_page() -> str:
    """The text of docs/api.md."""
    blocks = [INTRO, inspect.cleandoc(api.__doc__ or "").partition("\n\n")[2]]
    for title, things in SECTIONS.items():
        blocks.append(f"## {title}")
        for thing in things:
            blocks += describe(thing)
    return "\n\n".join([*blocks, CONSTANTS])


def describe(thing: Any) -> Iterator[str]:
    """Heading, signature and docstring of a function or class in Markdown; of a class its members too."""
    name: str = thing.__name__
    full = f"{'ubend' if name in ubend.__all__ else thing.__module__}.{name}"
    (node,) = ast.parse(inspect.getsource(thing)).body
    yield f"### {full}"
    if isinstance(node, ast.FunctionDef):
        yield write_call(node, full)
        yield from render(thing.__doc__)
        return
    assert isinstance(node, ast.ClassDef)
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    is_made, members = MEMBERS.get(name, (False, {one for one in methods if one[0] != "_" or one == "__getitem__"}))
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in ubend.__all__]
    yield from (f"A kind of `ubend.{base}`." for base in bases)
    if is_made:
        yield write_call(methods["__init__"], full)
    fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
    yield from render(thing.__doc__, {ast.unparse(one.target): annotation(one.annotation) for one in fields})
    for method in (method for key, method in methods.items() if key in members):
        shown = f"{name}.{method.name}"
        if any("property" in ast.unparse(one) for one in method.decorator_list):
            yield f"`{shown}: {annotation(method.returns)}`"
        else:
            yield write_call(method, shown)
        yield from render(ast.get_docstring(method))


def write_call(node: ast.FunctionDef, name: str) -> str:
    """The signature as a block of code, one parameter a line where they do not fit on one."""
    words = node.args
    defaults: list[ast.expr | None] = [None] * (len(words.args) - len(words.defaults)) + [*words.defaults]
    shown = [parameter(*one) for one in zip(words.args, defaults, strict=True) if one[0].arg != "self"]
    if words.kwonlyargs:
        shown += ["*", *(parameter(*one) for one in zip(words.kwonlyargs, words.kw_defaults, strict=True))]
    returns = "" if node.name == "__init__" else f" -> {annotation(node.returns)}"
    line = f"{name}({', '.join(shown)}){returns}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){returns}"
    return f"```python\n{line}\n```"


def parameter(word: ast.arg, default: ast.expr | None) -> str:
    """`name: type = default`."""
    return f"{word.arg}: {annotation(word.annotation)}" + ("" if default is None else f" = {ast.unparse(default)}")


def annotation(node: ast.expr | None) -> str:
    """As it stands in the source, without the quotes of a name that is imported late."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return "None" if node is None else ast.unparse(node)


def render(docstring: str | None, types: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """A docstring in Markdown: the items of its sections as lists, attributes with their types."""
    title, lines = "", list[str]()
    for line in [*inspect.cleandoc(docstring or "").splitlines(), "Raises:"]:
        found = _SECTION.match(line)
        if found is None:
            lines.append(line)
            continue
        body = textwrap.dedent("\n".join(lines)).strip("\n")
        if title == "Returns":
            yield f"Returns: {' '.join(body.split())}"
        elif title:
            yield f"{title}:\n\n" + _ITEM.sub(partial(_code, types), re.sub(r"\n +", " ", body))
        elif body:
            yield body
        title, lines = found[1], []


def _code(types: Mapping[str, str], item: re.Match[str]) -> str:
    names = (f"{name}: {types[name]}" if name in types else name for name in item[1].split(", "))
    return "- " + ", ".join(f"`{name}`" for name in names) + ":"


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
