"""`python -m tfmeta` is the command `tfmeta`."""

from tfmeta.cli import main

main(prog_name="tfmeta")
