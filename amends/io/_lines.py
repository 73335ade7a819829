"""Files of text, packed or not, as lines or whole, of which never more is held than a row may have."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from amends.io.errors import InputError
from amends.io.rows import MAX_ROW_BYTES, MAX_TEXT_BYTES, too_large

MAX_WHOLE_BYTES = 50_000_000  # of a file that is read whole: .json, .txt
COUNTED_BYTES = 10_000_000  # of a line that is too long; more is not read just to tell its size
MAX_RATIO = 200  # of what a packed file (.gz, .parquet) holds to its own size
MAX_UNPACKED_BYTES = 64_000_000_000
FREE_BYTES = 2_000_000  # unpacked, up to which the ratio does not matter
SIP_BYTES = 4096  # of a .gz file, between two looks at the ratio
BOM = b"\xef\xbb\xbf"


def unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{name}: cannot be read: {reason}. Check the file or write it again.")


def _decode(data: bytes, name: str, first_line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = first_line + before.count(b"\n")
        column = len(before[before.rfind(b"\n") + 1 :].decode()) + 1
        byte = f"byte 0x{data[error.start]:02x} at column {column}"
        raise InputError(f"{name}:{line}: not valid UTF-8 ({byte}). Save the file as UTF-8.") from error


def whole(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_WHOLE_BYTES + 1)
    except OSError as error:
        raise unreadable(name, error) from error
    if len(data) > MAX_WHOLE_BYTES:
        raise InputError(
            f"{name}: larger than {MAX_WHOLE_BYTES // 10**6} MB, the limit for this kind of file. "
            "Split it, or save the rows as .jsonl, which is streamed."
        )
    return _decode(data.removeprefix(BOM), name)


def lines(path: Path, name: str, may_be_long: Callable[[bytes], bool]) -> Iterator[tuple[int, str]]:
    """Line number and line with its end; a line is never held beyond the cap, which some may have higher."""
    number = 0
    try:
        with _open(path, name) as file:
            while line := file.readline(MAX_TEXT_BYTES + 8):  # 8: room for a BOM and the line's end
                number += 1
                if number == 1:
                    line = line.removeprefix(BOM)
                size = len(line.rstrip(b"\r\n"))
                if size > MAX_TEXT_BYTES or (size > MAX_ROW_BYTES and not may_be_long(line)):
                    raise too_large(f"{name}:{number}", _size(line, file))
                yield number, _decode(line, name, number)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(name, error) from error


def _open(path: Path, name: str) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return io.BufferedReader(_Unpacked(path, name))
    return path.open("rb")


class _Sips(io.FileIO):
    """A file of which little is read at once, so that its position tells what was used so far."""

    def read(self, size: int | None = None, /) -> bytes:
        return super().read(min(size or SIP_BYTES, SIP_BYTES))


class _Unpacked(io.RawIOBase):
    """What a .gz file holds, for as long as that is in proportion to the file."""

    def __init__(self, path: Path, name: str) -> None:
        self.packed, self.name, self.size = _Sips(path), name, 0
        self.inner = gzip.GzipFile(fileobj=self.packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size: int = self.inner.readinto(buffer)
        self.size += size
        check_unpacked(self.size, self.packed.tell(), self.name)
        return size

    def close(self) -> None:
        self.inner.close()
        self.packed.close()
        super().close()


def check_unpacked(unpacked: int, packed: int, name: str) -> None:
    """Stop at a bomb: a small file that holds far more than anyone's text does."""
    if unpacked > min(max(MAX_RATIO * packed, FREE_BYTES), MAX_UNPACKED_BYTES):
        raise InputError(
            f"{name}: holds more than {MAX_RATIO} times its own size, or than {MAX_UNPACKED_BYTES // 10**9} GB. If "
            "that is as it should be, unpack it and save the rows as .jsonl."
        )


def _size(line: bytes, file: BinaryIO) -> str:
    size = len(line)
    while not line.endswith(b"\n") and size < COUNTED_BYTES and (line := file.readline(MAX_ROW_BYTES)):
        size += len(line)
    return f"more than {COUNTED_BYTES}" if size >= COUNTED_BYTES else str(size - line.endswith(b"\n"))
