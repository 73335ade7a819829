"""Pictures in a folder: opened within limits, and hashed so that one that was saved anew is found.

A file is opened only if it lies in the folder, by formats that hold pixels alone; no address is followed.
"""

import hashlib
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_FILE_BYTES = 100_000_000
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # no EPS or PDF: those start a program
HASH_BITS = 64
MOST_NAME = 60
DEVICE = re.compile(r"con|prn|aux|nul|com\d|lpt\d|class_\d+", re.IGNORECASE)


class Broken(ValueError):
    """Why a file cannot be used."""


def inside(folder: Path, name: object) -> Path:
    """Find a file of a folder by its relative path.

    Raises
    ------
    Broken : no path, one that leads out of the folder (by "..", a link or from the root), no such file, too large.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise Broken("no path")
    home = folder.resolve()
    try:
        path = (home / name).resolve()
        if not path.is_relative_to(home):
            raise Broken("the path leads out of the folder")
        if not path.is_file():
            raise Broken("no such file")
        if path.stat().st_size > MOST_FILE_BYTES:
            raise Broken(f"the file has more than {MOST_FILE_BYTES:,} bytes")
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise Broken("no such file") from error
    return path


def open_picture(data: Any, most_pixels: int) -> Any:
    """Decode a picture wholly, in RGB; of several frames the first.

    Parameters
    ----------
    data : path or binary file

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    Broken : not a picture of `FORMATS`, cut off, or more pixels than allowed, which are not decoded then.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of bombs, which are measured here
            with Image.open(data, formats=FORMATS) as picture:
                if picture.width * picture.height > most_pixels:
                    raise Broken(f"{picture.width} x {picture.height} pixels, more than {most_pixels:,}")
                picture.load()
                return picture.convert("RGB")
    except Broken:
        raise
    except Image.DecompressionBombError as error:
        raise Broken(f"more than {most_pixels:,} pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError, ...
        raise Broken("not a sound picture") from error


def perceptual_hash(picture: Any) -> NDArray[np.bool_]:
    """Hash a picture to `HASH_BITS` bits that hardly change when it is scaled or saved anew (pHash, by ImageHash)."""
    import imagehash

    return np.asarray(imagehash.phash(picture).hash, dtype=bool).reshape(HASH_BITS)


def hex_of(bits: NDArray[np.bool_]) -> str:
    """Write a hash as ImageHash does: 16 hexadecimal digits."""
    return np.packbits(bits).tobytes().hex()


def sha256_of(data: bytes) -> str:
    """Digest of a sample's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """Give each label a name that any file system takes as a folder: letters, digits, "-" and "_".

    A label that has none of these, is a device of Windows, or would share its name gets "class_NUMBER" instead.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for number, label in enumerate(sorted(labels)):
        name = re.sub(r"[^\w-]+", "_", label).strip("_")[:MOST_NAME]
        if not name or DEVICE.fullmatch(name) or name.casefold() in taken:
            name = f"class_{number}"
        taken.add(name.casefold())
        found[label] = name
    return found
