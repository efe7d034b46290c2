"""HTML pages from the templates in this folder."""

import functools
import re
from typing import TYPE_CHECKING, Any

from ubend.core.i18n import _, current_language

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # not allowed in HTML, but possible in file names


def render_page(template: str, **values: Any) -> str:
    """The page in the language of the commands; all values are escaped.

    Args:
        template: name of a file in this folder; it can call `_` and read `language`.
    """
    page = _environment().get_template(template).render(language=current_language(), **values)
    return _CONTROL.sub("\ufffd", page)


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ubend.tasks", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["_"] = _
    return environment
