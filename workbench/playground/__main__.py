"""The command line: python -m workbench.playground."""

from __future__ import annotations

from workbench.playground.command import main
from workbench.run.process import exit_on_error

exit_on_error(main)
