"""How commands end: mistakes are answered in one line, and no process is left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def run(main: Callable[[list[str]], Any], arguments: list[str]) -> None:
    """
    Runs a command as a program of its own.

    Args:
        main (`Callable`): The command; it takes the command line without the program's name.
        arguments (`list[str]`): That command line.

    Raises:
        SystemExit: If the user made a mistake, which the main process explains in one line (code 1), or interrupted it
            (code 130). Anything else keeps its traceback.
    """
    from accelerate import PartialState

    from ..hub import PushError

    try:
        main(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    # transformers answers a name that it doesn't find with a plain OSError
    except (FloatingPointError, OSError, PushError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}" if PartialState().is_main_process else 1)
    finally:
        PartialState().destroy_process_group()
