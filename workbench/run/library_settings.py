"""Settings of libraries that a trainer changes for the whole process, read before a block and set again after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.run.torch_settings import TorchSettings, read_torch_settings

# What transformers sets for full_determinism.
DETERMINISM_VARIABLES = (
    *("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"),
    *("ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"),
)


@contextmanager
def library_settings_restored() -> Iterator[None]:
    """Restore torch's settings, transformers' verbosity and the variables of determinism after the block."""
    settings, verbosity = read_torch_settings(), read_verbosity()
    variables = {name: os.environ.get(name) for name in DETERMINISM_VARIABLES}
    try:
        yield
    finally:
        (settings or TorchSettings()).restore()
        if verbosity is not None:
            transformers_logging().set_verbosity(verbosity)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def read_verbosity() -> int | None:
    """Return the level of transformers' messages, or None if nothing in this process has imported it."""
    return transformers_logging().get_verbosity() if "transformers.utils.logging" in sys.modules else None


def transformers_logging() -> Any:
    """Return the module that holds transformers' verbosity."""
    from transformers.utils import logging

    return logging
