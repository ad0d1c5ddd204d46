"""The command line: python -m workbench.export."""

from __future__ import annotations

from workbench.export.command import main
from workbench.run.process import exit_on_error

exit_on_error(main)
