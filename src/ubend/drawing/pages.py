"""HTML pages from templates."""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ubend.core.i18n import _, current_language

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # not allowed in HTML, but possible in file names


def render_page(template: Path, **values: Any) -> str:
    """The page in the language of the commands; all values are escaped.

    Args:
        template: the file; it can call `_` and read `language`.
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
    return environment
