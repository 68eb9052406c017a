"""The only reader of text files: annotations, lists and names, however they were packed or coded.

gzip and zip files are unpacked. UTF-8 and UTF-16, with or without a byte order mark, and what an
XML file declares are decoded; what is none of these is taken as latin-1, which holds any bytes.
"""

import gzip
import io
import json
import re
import zipfile
import zlib
from typing import Any

from etils import epath

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import storage

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read_bytes(path: epath.PathLike, kind: str = "file") -> bytes:
    """The content of a file, unpacked.

    Args:
      path: of the file.
      kind: what messages call it, such as "annotation file".

    Raises:
      UserError: the file is missing, cannot be read, or cannot be unpacked.
    """
    try:
        data = storage.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}") from None
    except storage.StorageError as error:
        reason = str(error).removeprefix(f"cannot read {path}: ")
        raise UserError(f"{path}: cannot read the {kind} ({reason})") from None
    return unpack(data, str(path))


def read_text(path: epath.PathLike, kind: str = "file") -> str:
    """The text of a file; see `read_bytes`."""
    return decode(read_bytes(path, kind))


def read_lines(path: epath.PathLike, kind: str = "list") -> list[str]:
    """The lines of a text file that hold anything, without the space around them."""
    return [line.strip() for line in read_text(path, kind).splitlines() if line.strip()]


def one_line(name: str) -> str:
    """A class's name without line ends, which no list of names and no picture can hold."""
    return name if name.splitlines() in ([], [name]) else " ".join(name.split())


def read_json(path: epath.PathLike, kind: str = "annotation file") -> Any:
    """What a JSON file holds.

    Raises:
      UserError: the file cannot be read or is not JSON.
    """
    return parse_json(read_bytes(path, kind), path)


def parse_json(data: bytes, path: epath.PathLike) -> Any:
    """What the content of a JSON file holds; raises UserError if it is none."""
    try:
        return json.loads(decode(data))
    except (ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a JSON file ({first})") from None


def unpack(data: bytes, path: str) -> bytes:
    """The content of a gzip file, or of a zip file with one member; other bytes as they are.

    Raises:
      UserError: the archive is damaged, or holds several files.
    """
    try:
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if data.startswith(_ZIP):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [name for name in archive.namelist() if not name.endswith("/")]
                members = [name for name in members if not name.startswith("__MACOSX")]
                if len(members) != 1:
                    raise UserError(
                        f"{path}: a zip file with {len(members)} files; unpack it and name the one"
                    )
                return archive.read(members[0])
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise UserError(f"{path}: cannot unpack it ({error})") from None
    return data


def decode(data: bytes) -> str:
    """Text from bytes, by mark, by declaration, by what fits."""
    codings = [coding for mark, coding in _MARKS if data.startswith(mark)]
    declared = re.match(rb"\s*<\?xml[^>]*?encoding=[\"']([\w.-]+)[\"']", data[:200])
    if declared and not codings:
        codings.append(declared[1].decode("ascii"))
    if not codings and data[:64].count(0) >= len(data[:64]) // 3 > 0:
        codings.append("utf-16-be" if data[:1] == b"\0" else "utf-16-le")
    for coding in (*codings, "utf-8"):
        try:
            return data.decode(coding)
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode("latin-1")
