"""Strategies side by side: models x tasks x shots x strategies x seeds, a results store that only grows, and a report."""

from .cells import Cell, Group, groups, parse_shard
from .config import BenchConfig, TaskConfig, load_config
from .markdown import to_markdown
from .pareto import pareto_front
from .report import write_report
from .runner import BenchRunner
from .store import ResultStore, read_rows


__all__ = [
    "BenchConfig",
    "BenchRunner",
    "Cell",
    "Group",
    "ResultStore",
    "TaskConfig",
    "groups",
    "load_config",
    "pareto_front",
    "parse_shard",
    "read_rows",
    "to_markdown",
    "write_report",
]
