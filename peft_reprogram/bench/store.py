"""The results store: a file of JSON lines, one a finished cell, which only ever grows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class ResultStore:
    """
    Rows that are there or not, whatever interrupts their writing.

    Args:
        path (`str` or `Path`): A file of JSON lines; it need not exist.
        key (`str`, *optional*, defaults to `"cell"`): The entry of a row that tells it from the others.
        others (`Iterable[str | Path]`, *optional*): Stores whose rows count as there, too, but which are not written to.
    """

    def __init__(self, path: str | Path, key: str = "cell", others: Iterable[str | Path] = ()) -> None:
        self.path = Path(path)
        self.key = key
        paths = [*others, *([self.path] if self.path.is_file() else [])]
        self._rows = {_name(row[key]): row for row in read_rows(paths, key)}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows.values())

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of this key, if it is there."""
        return self._rows.get(_name(key))

    def append(self, row: dict[str, Any], on_disk: bool = True) -> None:
        """
        Adds a row.

        Args:
            row (`dict`): In JSON types, with the entry that tells rows apart.
            on_disk (`bool`, *optional*, defaults to `True`): Whether to write it, too: several processes hold one store, and
                one of them writes. It is on the disk when this returns.
        """
        self._rows[_name(row[self.key])] = row
        if not on_disk:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, allow_nan=False) + "\n"
        with self.path.open("a+b") as file:
            # What a killed run left of its last line would spoil this one.
            if file.tell() and not self._ends_with_newline(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _ends_with_newline(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_rows(paths: Iterable[str | Path], key: str = "cell") -> list[dict[str, Any]]:
    """
    The rows of one or several stores, such as those of several machines.

    Args:
        paths (`Iterable[str | Path]`): Files of JSON lines. A line that a killed run left unfinished is passed over.
        key (`str`, *optional*, defaults to `"cell"`): The entry that tells rows apart; of rows with one key the last counts.

    Returns:
        `list[dict]`: In the order in which they were first written.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a line is no result.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"there is no results store {path}.")
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            try:
                row = json.loads(line)
            except ValueError:
                continue  # blank, or cut off
            if not isinstance(row, dict) or key not in row:
                raise ValueError(
                    f"line {number} of {path} is no result: it has no {key!r}. Give files that a bench wrote."
                )
            rows[_name(row[key])] = row
    return list(rows.values())


def _name(key: Any) -> str:
    return json.dumps(key, sort_keys=True)
