"""Tests that need the environment of `make reader-gptq`."""

import os
from pathlib import Path

import pytest

from normtweak_core.export.formats.checks import GPTQ_READER, GPTQ_READER_DONE

REPOSITORY = Path(__file__).resolve().parents[1]

needs_gptq_reader = pytest.mark.skipif(
    not (REPOSITORY / GPTQ_READER_DONE).is_file()
    and not os.environ.get("NORMTWEAK_REQUIRE_GPTQ_READER"),
    reason=f"{GPTQ_READER} is absent or not complete: run `make reader-gptq`",
)
