"""Folders of finished runs."""

from support.serving_runs import released

__all__ = ["released"]
