"""Folders of finished runs, and a hub's cache."""

from support.hub_cache import hub
from support.serving_runs import released

__all__ = ["hub", "released"]
