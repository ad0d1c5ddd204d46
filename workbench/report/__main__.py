"""The command line: python -m workbench.report."""

from __future__ import annotations

from workbench.report.run_list import main
from workbench.run.process import exit_on_error

exit_on_error(main)
