"""The command line: python -m workbench.export."""

from __future__ import annotations

from workbench.cli import leave_with
from workbench.export.command import main

leave_with(main)
