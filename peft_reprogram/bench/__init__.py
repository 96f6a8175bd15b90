from .cells import Cell, Group, groups, parse_shard
from .config import BenchConfig, TaskConfig, load_config
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
    "parse_shard",
    "read_rows",
]
