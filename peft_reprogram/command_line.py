"""How the scripts read their arguments: dataclasses, a YAML file and flags, of which flags win."""

from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentDefaultsHelpFormatter, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def parse_config(
    kinds: Sequence[type], arguments: Sequence[str], description: str | None = None, usage: str | None = None
) -> tuple[Any, ...]:
    """
    Makes dataclasses from flags and the configuration file that `--config` may name.

    The file holds the names of the flags as keys. It is read as flags before the given ones, so it is checked as they are.

    Args:
        kinds (`Sequence[type]`): The dataclasses; a field's `help` metadata documents its flag.
        arguments (`Sequence[str]`): The command line without the program's name.
        description (`str`, *optional*): What `--help` says of the program.
        usage (`str`, *optional*): The line that precedes `--help` and the message about a missing or malformed flag; the usage
            of all flags, by default, pushes that message off the screen.

    Returns:
        `tuple`: One instance of each kind.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file isn't a YAML mapping, has unknown keys, a flag is unknown, or a value is out of range.
        SystemExit: If a required flag is missing, or a value malformed, which is printed.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        tuple(kinds),  # type: ignore[arg-type]
        description=description,
        formatter_class=_HelpFormatter,
        usage=usage,
        add_help=False,
        allow_abbrev=False,
    )
    parser.register("type", dict[str, Any], _json_object)
    parser.add_argument("--config", default=None, help="A YAML file with the names of these flags as keys.")
    parser.add_argument("-h", "--help", action="help", help="Shows this and exits.")
    finder = HfArgumentParser((), add_help=False, allow_abbrev=False)  # type: ignore[arg-type]
    finder.add_argument("--config", default=None)
    file = finder.parse_known_args(list(arguments))[0].config
    known = [item.name for kind in kinds for item in dataclasses.fields(kind)]
    from_file = [] if file is None else _as_flags(_read(Path(file), known))
    *made, _, unknown = parser.parse_args_into_dataclasses(
        [*from_file, *arguments], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(f"unknown arguments {' '.join(unknown)}; the known flags are --{', --'.join(known)}.")
    return tuple(made)


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults are shown, and examples keep their lines."""


def _read(path: Path, known: list[str]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}.")
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold lines of `name: value`, not a {type(content).__name__}.")
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ValueError(f"{path} has unknown keys {unknown}; the known ones are {', '.join(known)}.")
    return dict(content)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"must be a JSON object such as '{{\"name\": 1}}', got {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"must be a JSON object such as '{{\"name\": 1}}', got {text!r}")
    return value


def _as_flags(content: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for key, value in content.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        if value is not None and values:
            flags += [f"--{key}", *map(str, values)]
    return flags
