"""Runs of `swaa eval`: recipes x tasks x lengths x chain of thought on one model, in a folder that can be continued."""

from swaa.runs.engine import run
from swaa.runs.folder import RunFolder
from swaa.runs.settings import Cell, RunSettings

__all__ = ["Cell", "RunFolder", "RunSettings", "run"]
