"""The language of the sentences that people see (gettext).

`_("sentence")` looks the sentence up in `locale/LANG/LC_MESSAGES/ubend.mo`; without a catalogue the
English of the code is shown. `UBEND_LANG` (for example `vi`) chooses the language.
"""

import functools
import gettext
import os
from pathlib import Path

LOCALE_FOLDER = Path(__file__).parent / "locale"


@functools.cache
def _catalogue(language: str) -> gettext.NullTranslations:
    return gettext.translation("ubend", str(LOCALE_FOLDER), [language], fallback=True)


def _(sentence: str) -> str:
    """The sentence in the language of `UBEND_LANG`; formatted by the caller with `.format(...)`."""
    return _catalogue(os.environ.get("UBEND_LANG", "en")).gettext(sentence)


def plural(one: str, many: str, count: int) -> str:
    """`one` or `many` by the language's own rule for `count`."""
    return _catalogue(os.environ.get("UBEND_LANG", "en")).ngettext(one, many, count)
