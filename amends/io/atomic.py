"""Files and folders that appear whole or not at all, and a manifest that finds what was changed since.

A folder is written under a hidden name beside its place (".NAME.tmp-PID") and moved there when it is complete. A lock
beside it (".NAME.lock") keeps a second process from the same place.
"""

import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from amends.io.errors import Held, InputError
from amends.io.tables import read_json

MANIFEST = "manifest.json"
MOST_NAME_BYTES = 230  # of a new file or folder: file systems take 255, and temporary names beside it are longer
_held: set[Path] = set()  # locks of this process: a lock file with our own pid may also be left from before a restart


class Problem(NamedTuple):
    """One way in which a folder differs from its manifest."""

    file: str  # relative, with forward slashes
    what: str  # "missing", "size", "changed" (same size, other content) or "unlisted"


def check_new(path: str | Path) -> None:
    """Check, before long work, that a file or folder can be made at `path`.

    Raises
    ------
    InputError : something is there already, or its place is no folder that can be written to, or no file system takes
        the name.
    """
    _check_name(path)
    place = _absolute(path)
    if os.path.lexists(place):
        raise InputError(f"{path}: exists already. Give a name that is not taken, or remove it.")
    there = next(parent for parent in place.parents if os.path.lexists(parent))
    if not there.is_dir():
        raise InputError(f"{path}: {there} is a file, not a folder. Give another place.")
    runs = (parent for parent in place.parents if (parent / MANIFEST).is_file() and (parent / "run.json").is_file())
    if whole := next(runs, None):
        raise InputError(f"{path}: {whole} is a finished run, which nothing may be added to. Give another place.")
    if not os.access(there, os.W_OK):
        raise InputError(f"{path}: {there} cannot be written to. Give another place.")


def _check_name(path: str | Path) -> None:
    """Refuse what would fail only after long work, or make a folder that nobody meant."""
    name = str(path)
    if any(ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 for char in name):
        raise InputError(f"{name!r}: has characters that no name may have. Give another one.")
    if name.startswith("~") or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
        raise InputError(f"{name}: an address, or with ~, which is not replaced here. Write out the path of a folder.")
    if any(len(os.fsencode(part)) > MOST_NAME_BYTES for part in Path(path).parts):
        raise InputError(f"{name}: a name in it is longer than {MOST_NAME_BYTES} bytes. Give a shorter one.")


@contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Hold `path`, which need not exist, against other processes; folders missing above it are made meanwhile.

    The lock is the file ".NAME.lock" with process id and host. One that a dead process of this host left is taken over,
    and what that process had half written is removed. Locks nest within a process.

    Raises
    ------
    Held : another process, or one on another host, holds it.
    """
    place = _absolute(path)
    if place in _held:
        yield
        return
    made = [parent for parent in place.parents if not parent.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    file = _sibling(place, "lock")
    _take(file, place, path)
    _held.add(place)
    try:
        yield
    finally:
        _held.discard(place)
        with suppress(OSError):  # read-only by now; the next process sees that we are dead
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: they are needed now
            for parent in made:
                parent.rmdir()


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Fill a new folder under a temporary name; it gets its own name when all is written and on the disk.

    Parameters
    ----------
    path : str or Path
        Must not exist; folders missing above it are made. Locked meanwhile (see `lock`).

    Yields
    ------
    Path : the temporary folder. On any exception it is removed and nothing is left.

    Raises
    ------
    InputError : `path` exists, or another process is writing to it.
    """
    place = _absolute(path)
    check_new(path)
    with lock(path):
        folder = _sibling(place, f"tmp-{os.getpid()}")
        _remove(folder)  # left by a dead process that had our id, or a link that somebody put there
        folder.mkdir()
        try:
            yield folder
            for inner in (*folder.rglob("*"), folder):
                _sync(inner)
            check_new(path)
            folder.rename(place)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _sync(place.parent)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name; it takes its place when all is on the disk: the old file or the new one.

    Folders missing above it are made.

    Yields
    ------
    Path : where to write. On any exception it is removed, and an old file stays.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(place, f"tmp-{os.getpid()}")
    try:
        _remove(temporary)
        with temporary.open("xb"):  # x: a link that somebody put there is not followed
            pass
        yield temporary
        _sync(temporary)
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(place.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with the line ends it has: the old file or the new one is there, never a part.

    Folders missing above it are made. Half a character, as in the name of a file that is not UTF-8, becomes "?".
    """
    with new_file(path) as temporary:
        temporary.write_bytes(text.encode(errors="replace"))


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON as `write_text` does: indent 1, keys in their order, a number that is not finite as null."""
    write_text(path, json.dumps(finite(obj), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(obj: Any) -> Any:
    """Put None for each NaN and infinity, and lists for tuples, as JSON has them."""
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {key: finite(value) for key, value in obj.items()}
    return [finite(value) for value in obj] if isinstance(obj, list | tuple) else obj


def sha256_file(path: str | Path) -> str:
    """Digest of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(obj: Any) -> str:
    """Digest of an object's canonical JSON: sorted keys, no spaces, UTF-8; in hexadecimal.

    Raises
    ------
    ValueError : NaN or infinity, which JSON does not have.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: str | Path) -> None:
    """Write manifest.json: {"files": {relative path: {"bytes", "sha256"}}} of all other files; call it last."""
    files = {
        name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for name, file in _files(Path(folder)).items()
    }
    write_json(Path(folder) / MANIFEST, {"files": files})


def check_manifest(folder: str | Path) -> list[Problem]:
    """Compare a folder with its manifest.

    Returns
    -------
    list of Problem, by file name; empty if all is as written. A link counts as changed. The manifest itself is not
    covered: who can change a file can change the manifest too.

    Raises
    ------
    InputError : no manifest, or not one that `write_manifest` wrote.
    """
    folder = Path(folder)
    source = folder / MANIFEST
    if not source.is_file():
        raise InputError(f"{folder}: no {MANIFEST} in it. Give a folder that amends wrote.")
    listed, there = _listed(read_json(source), source), _files(folder)
    problems = [Problem(name, "unlisted") for name in there.keys() - listed.keys()]
    for name, (size, digest) in listed.items():
        file = there.get(name)
        if file is None:
            problems.append(Problem(name, "missing"))
        elif file.is_symlink() or not file.is_file():
            problems.append(Problem(name, "changed"))
        elif file.stat().st_size != size:
            problems.append(Problem(name, "size"))
        elif sha256_file(file) != digest:
            problems.append(Problem(name, "changed"))
    return sorted(problems)


def _listed(manifest: Any, source: Path) -> dict[str, tuple[int, str]]:
    try:
        return {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{source}: not a manifest: expected {{"files": {{name: {{"bytes", "sha256"}}}}}}.') from error


def _files(folder: Path) -> dict[str, Path]:
    """All but real folders and the manifest; links are not followed."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return {name: path for path in found if (name := path.relative_to(folder).as_posix()) != MANIFEST}


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # unlike Path.absolute it resolves "..", unlike resolve it follows no link


def _sibling(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{ending}")


def _sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk; Windows cannot do that for what is open for reading."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _take(file: Path, place: Path, path: str | Path) -> None:
    owner = ""
    for _ in range(3):  # more than once, as the lock may be released or taken over at this very moment
        try:
            with file.open("x", encoding="utf-8") as new:
                new.write(f"{os.getpid()} {socket.gethostname()}")
            return
        except FileExistsError:
            if file.is_file() and not file.is_symlink():  # else nothing of ours
                with suppress(FileNotFoundError):
                    owner = file.read_text(encoding="utf-8", errors="replace")
        if not _is_dead(owner):
            break
        _remove_stale(file, owner, _sibling(place, f"tmp-{owner.split()[0]}"))
    process, _, host = owner.partition(" ")
    raise Held(
        f"{path}: another process{f' ({process} on {host})' if host else ''} is writing there. Wait for it or give "
        f"another name; if it no longer runs, remove {file}."
    )


def _is_dead(owner: str) -> bool:
    """Whether the owner surely runs no more; what cannot be told from here counts as running."""
    process, _, host = owner.partition(" ")
    if host != socket.gethostname() or not process.isdecimal() or os.name == "nt":  # there, os.kill would end it
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return int(process) == os.getpid()  # our own locks are in _held: it was an earlier process with our id


def _remove_stale(file: Path, owner: str, half_written: Path) -> None:
    taken = file.with_name(f"{file.name}-{os.getpid()}")
    try:
        file.rename(taken)
    except FileNotFoundError:
        return
    if taken.read_text(encoding="utf-8", errors="replace") == owner:
        taken.unlink()
        shutil.rmtree(half_written, ignore_errors=True)
    else:  # another process took it over first: this is its lock
        taken.rename(file)
