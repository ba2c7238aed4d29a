"""Reading a model without what transformers says meanwhile: what of it matters is an error of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging as hf_logging


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Reading and writing models without transformers' own progress bars."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def no_load_report() -> Iterator[None]:
    """Reading a model without transformers' table of keys, and its notes on what it does not know.

    Of a way to quantise that is unknown it says that it is passed over, and how to be told so no more.
    """
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)
