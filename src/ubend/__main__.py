"""`python -m ubend`."""

from ubend.cli.app import main

main(prog_name="ubend")
