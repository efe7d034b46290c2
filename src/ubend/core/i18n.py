"""Translation of user-visible messages; see `ubend.portable.i18n`."""

from ubend.portable.i18n import (
    LANGUAGES,
    LOCALE_FOLDER,
    _,
    choose_language,
    current_language,
    later,
    ngettext,
    now,
)

__all__ = [
    "LANGUAGES",
    "LOCALE_FOLDER",
    "_",
    "choose_language",
    "current_language",
    "later",
    "ngettext",
    "now",
]
