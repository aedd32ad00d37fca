"""The digest of a file inside the file: the sha256 of all its bytes, with 64 zeros in the digest's
own place.

Checksums of Parquet pages cover the values. The digest covers what lies between them, too: the
footer and the headers of pages. It is found by a mark, the bytes that stand before it.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

EMPTY = "0" * 64
_CHUNK_BYTES = 2**20
# The digest stands at the end of a file: in the footer, whose length a Parquet file ends with.
_SEARCHED_BYTES = 2**26
_PARQUET_END = b"PAR1"
_SHA256 = re.compile("[0-9a-f]{64}")


class HashingStream:
    """A new file that is hashed while it is written, from the first byte to the last."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.closed = False

    def write(self, content: bytes) -> int:
        """Hash and write."""
        self._sha256.update(content)
        return self._stream.write(content)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._stream.tell()

    def flush(self) -> None:
        """Hand what is written to the system."""
        self._stream.flush()

    def close(self) -> None:
        """End the writing. The stream below stays open, since the digest is still to be put into it."""
        self.closed = True

    def hexdigest(self) -> str:
        """Return the sha256 of all bytes so far."""
        return self._sha256.hexdigest()


def fill_in(content: bytes, mark: bytes) -> bytes:
    """Return a small file's bytes with their digest in the place of the zeros behind the last `mark`."""
    start = content.rfind(mark) + len(mark)
    sha256 = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + sha256 + content[start + len(EMPTY) :]


def put(stream: BinaryIO, sha256: str, mark: bytes) -> None:
    """Write a digest over the zeros that stand last in a file behind `mark`."""
    start = _find(stream, mark)
    assert start is not None
    stream.seek(start)
    assert stream.read(len(EMPTY)) == EMPTY.encode()
    stream.seek(start)
    stream.write(sha256.encode())


def is_whole(path: Path | str, mark: bytes) -> bool | None:
    """Tell whether a file has the bytes it was written with; None where no digest stands behind
    `mark`.

    Raises OSError as the system gives it.
    """
    with open(path, "rb") as stream:
        start = _find(stream, mark)
        if start is None:
            return None
        stream.seek(start)
        expected = stream.read(len(EMPTY))
        sha256 = hashlib.sha256()
        stream.seek(0)
        # Hash what is before the digest, zeros in its place, what is behind it.
        remaining = start
        while remaining and (content := stream.read(min(_CHUNK_BYTES, remaining))):
            sha256.update(content)
            remaining -= len(content)
        sha256.update(EMPTY.encode())
        stream.seek(start + len(EMPTY))
        while content := stream.read(_CHUNK_BYTES):
            sha256.update(content)
    return expected == sha256.hexdigest().encode()


def read(path: Path | str, mark: bytes) -> str | None:
    """Return the digest that stands in a file, 64 hex digits; None where there is none, or no file."""
    try:
        with open(path, "rb") as stream:
            start = _find(stream, mark)
            if start is None:
                return None
            stream.seek(start)
            sha256 = stream.read(len(EMPTY)).decode("latin-1")
            return sha256 if _SHA256.fullmatch(sha256) else None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _find(stream: BinaryIO, mark: bytes) -> int | None:
    """Return the offset of the digest behind the last `mark`, or None."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    footer = int.from_bytes(tail[:4], "little") + 8 if tail[4:] == _PARQUET_END else size
    searched_from = max(0, size - min(footer, _SEARCHED_BYTES))
    stream.seek(searched_from)
    position = stream.read().rfind(mark)
    if position < 0:
        return None
    start = searched_from + position + len(mark)
    return start if start + len(EMPTY) <= size else None
