"""Terminal output with control characters in names escaped, so that the terminal does not execute them."""

import click

from ubend.portable.printable import printable, printable_line

__all__ = ["echo", "printable", "printable_line"]


def echo(text: object, *, err: bool = False) -> None:
    """Print to standard output or standard error."""
    click.echo(printable(str(text)), err=err)
