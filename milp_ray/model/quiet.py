"""Transformers without its progress bars and notes: what of them matters is an error of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging as hf_logging


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Inside the block, reading and writing models shows no progress bars."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def no_load_report() -> Iterator[None]:
    """Inside the block, reading a model prints no table of keys, and no note on what is unknown.

    Of an unknown way to quantise, transformers notes that it is passed over.
    """
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
