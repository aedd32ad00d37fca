"""A seal: the sha256 of all bytes of a file, inside the file.

Checksums of pages cover the values; the seal covers the footer, the headers of pages, and what lies between. Its own
place is hashed as 64 zeros.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

EMPTY = "0" * 64
_CHUNK = 2**20
# A footer is searched for its seal from behind; one of ours is smaller than this by far.
_MOST = 2**26


class Hashing:
    """A new file that is hashed while it is written, from the first byte to the last."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._sha256 = stream, hashlib.sha256()
        self.closed = False

    def write(self, content: bytes) -> int:
        """Hash and write."""
        self._sha256.update(content)
        return self._stream.write(content)

    def tell(self) -> int:
        """How far it is written."""
        return self._stream.tell()

    def flush(self) -> None:
        """Hand what is written to the system."""
        self._stream.flush()

    def close(self) -> None:
        """Nothing more is written by whoever calls it; the stream stays open."""
        self.closed = True

    def hexdigest(self) -> str:
        """Of all bytes so far."""
        return self._sha256.hexdigest()


def sealed(content: bytes, mark: bytes) -> bytes:
    """A small file's bytes with their seal in the place of the zeros behind the last `mark`."""
    at = content.rfind(mark) + len(mark)
    return content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + len(EMPTY) :]


def put(stream: BinaryIO, digest: str, mark: bytes) -> None:
    """Write a digest over the zeros that stand last in a file behind `mark`."""
    at = _find(stream, mark)
    assert at is not None
    stream.seek(at)
    assert stream.read(len(EMPTY)) == EMPTY.encode()
    stream.seek(at)
    stream.write(digest.encode())


def is_whole(path: Path | str, mark: bytes) -> bool | None:
    """Is a file as it was sealed? None where it has no seal behind `mark`."""
    with open(path, "rb") as stream:
        at = _find(stream, mark)
        if at is None:
            return None
        stream.seek(at)
        seal, sha256 = stream.read(len(EMPTY)), hashlib.sha256()
        stream.seek(0)
        left = at
        while left and (content := stream.read(min(_CHUNK, left))):
            sha256.update(content)
            left -= len(content)
        sha256.update(EMPTY.encode())
        stream.seek(at + len(EMPTY))
        while content := stream.read(_CHUNK):
            sha256.update(content)
    return seal == sha256.hexdigest().encode()


def _find(stream: BinaryIO, mark: bytes) -> int | None:
    """Where the seal behind the last `mark` begins."""
    size = stream.seek(0, os.SEEK_END)
    start = max(0, size - _MOST)
    stream.seek(start)
    at = stream.read().rfind(mark)
    return None if at < 0 or start + at + len(mark) + len(EMPTY) > size else start + at + len(mark)
