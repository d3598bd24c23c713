"""Texts from an argument, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path


def read_text(text: str | None, file: str | None = None) -> str | None:
    """`text` itself (`-`: standard input), or what `file` holds; None without either. Raises RequestError.

    UTF-8 is read strictly, since guessing would speak nonsense; a byte order mark is dropped.
    """
    from octavo.runtime.errors import RequestError

    if text is None and file is None:
        return None
    if text is not None and file is not None:
        raise RequestError(f"Both a text and the file {file} are given. Give one of the two.")
    text, file = ("-", None) if file == "-" else (text, file)
    source = file if file is not None else "Standard input" if text == "-" else "The text"
    try:
        if file is not None:
            raw = Path(file).read_bytes()
        elif text == "-":
            raw = sys.stdin.buffer.read()
        else:
            assert text is not None
            raw = text.encode()  # fails on what an argument that is not UTF-8 was turned into
        return raw.decode("utf-8-sig")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise RequestError(f"{source} is not valid UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except OSError as error:
        raise RequestError(f"{source} cannot be read: {error.strerror}. Check the path.") from error
