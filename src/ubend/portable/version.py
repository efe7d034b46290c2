"""The version; packaging, `--version`, run folders and CHANGELOG.md take it from here."""

__version__ = "0.1.0"
