"""A headless Chromium, or why there is none.

Wants Debian's package ``chromium`` and the extra ``browser`` of pyproject.toml.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def headless() -> Iterator[Any]:
    """Start the browser; skips the test, with the reason, where it or its driver is missing."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is missing")
    with api.sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
