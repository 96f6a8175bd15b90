"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional


# How the folders begin that a killed process leaves behind.
PARTIAL = ".partial-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    A temporary file that takes the place of another when the block ends without an error.

    Args:
        path (`Path`): The file to write; its folder is created if needed.

    Yields:
        `Path`: The temporary file, empty, beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp makes it readable by its owner alone; what is stored is as public as any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path, last: Optional[str] = None) -> Iterator[Path]:
    """
    A temporary folder whose files move into another when the block ends without an error.

    What the other folder holds beside them stays; a subfolder is replaced as a whole.

    Args:
        folder (`Path`): The folder to write to, created if needed.
        last (`str`, *optional*): The file that says that all others are there: an old one is removed before the first file
            moves, and the new one moves after all others.

    Yields:
        `Path`: The temporary folder, empty.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=PARTIAL))
    try:
        yield staging
        if last is not None:
            (folder / last).unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: (path.name == last, path.name)):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it isn't empty: the files are there
                folder.rmdir()
