"""Write the table of docs/settings.md: every setting with its default and its description.

make settings-page

The descriptions are the strings below the fields of `core/settings.py`. What the page says around the table stays.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ubend.core import settings as module
from ubend.core.settings import flatten, make_settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = "| key | default | meaning |\n|---|---|---|\n"


def describe_settings() -> dict[str, str]:
    """Dotted key -> description, in the order of the fields."""
    classes = {node.name: node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)}

    def of(kind: ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
        for field, below in zip(kind.body, [*kind.body[1:], None], strict=True):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id=section)), _ if section in classes:
                    yield from of(classes[section], f"{prefix}{name}.")
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    yield prefix + name, " ".join(text.split())

    return dict(of(classes["Settings"], ""))


def render(page: str) -> str:
    """The page with its table made again."""
    before, found, table = page.partition(HEAD)
    if not found:
        raise ValueError(f"{PAGE.name} has no line {HEAD.splitlines()[0]}")
    after = re.sub(r"\A(\|[^\n]*\n)*", "", table)
    descriptions = describe_settings()
    rows = [
        f"| `{key}` | {_shown(value, descriptions[key])} | {descriptions[key]} |\n"
        for key, value in flatten(make_settings().model_dump())
    ]
    return before + HEAD + "".join(rows) + after


def _shown(value: Any, description: str) -> str:
    if value is None:
        return "auto" if "auto" in description else "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
