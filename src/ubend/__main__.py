"""`python -m ubend`."""

from ubend.cli import main

main(prog_name="ubend")
