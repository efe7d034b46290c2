"""HTML pages from templates."""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ubend.core.i18n import _, current_language

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_CODE = re.compile(r"`([^`]+)`")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # not allowed in HTML, but possible in file names


def render_page(template: Path, **values: Any) -> str:
    """The page in the language of the commands; all values are escaped.

    Args:
        template: the file; it can call `_`, read `language`, and has the filter `code`: `x` in backticks as code.
    """
    page = _environment(template.parent).get_template(template.name).render(language=current_language(), **values)
    return _CONTROL.sub("\ufffd", page)


@functools.cache
def _environment(folder: Path) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["_"] = _
    environment.filters["code"] = _mark_code
    return environment


def _mark_code(text: str) -> "Markup":
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))
