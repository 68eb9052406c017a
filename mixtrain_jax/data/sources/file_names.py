"""From the names in annotation files to the image files that are there.

Names written on another system or by another tool are looked for as they may have been meant: with
backslashes, with %20, in another Unicode form, in capitals, with a folder too many or too few, and
at last with another extension. A name that fits several files fits none, and a file that another
name means is found by its own spelling only: 0.jpg of another folder is not it.
"""

import difflib
import functools
import os
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Iterable, Sequence

from etils import epath

from mixtrain_jax.runtime import storage

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "tif", "tiff", "webp", "gif"),
        *("ppm", "pgm", "pnm", "jp2"),
    )
)


# By each of these sets of names a folder is known as one that is written here: a run's, an audit's,
# a check's. The pictures and labels in it are no part of a data set around it.
OURS = (
    frozenset({"config.json", "checkpoints"}),
    frozenset({"audit.json", "corrected.json"}),
    frozenset({"report.json", "check.html"}),
    frozenset({".predicted"}),
)


class Folder:
    """A folder of images; looks at the disk only as far as names ask for it.

    Attributes:
      path: of the folder.
    """

    def __init__(self, path: epath.PathLike):
        self.path = os.fspath(path)
        self._listed: dict[str, frozenset[str]] = {}
        self._stem = str(epath.Path(path) / "x")[:-1]

    def find(self, name: str) -> str | None:
        """The path below the folder of the file that a name means; None if there is none."""
        parent, base = os.path.split(name)
        if parent not in self._listed:
            self._listed[parent] = frozenset(_listing(epath.Path(self.path) / parent))
        if base in self._listed[parent]:
            return name
        plain = _plain(name)
        for known, key in (
            (self._names[0], plain),
            (self._names[1], posixpath.basename(plain)),
            (self._names[2], posixpath.splitext(posixpath.basename(plain))[0]),
        ):
            found = known.get(key, ())
            if len(found) > 1:  # as many last folders in common as tell them apart
                ends = [path for path in found if _plain(path).endswith(f"/{_last(plain, 2)}")]
                found = ends if len(ends) == 1 else found
            if len(found) == 1:
                return found[0]
        return None

    def find_all(self, names: Sequence[str]) -> list[str | None]:
        """The path of the file that each name means; None where there is none, or it is another's.

        The last part of a name alone is not enough where a second name means the same file.
        """
        found = [self.find(name) for name in names]
        means: dict[str, set[str]] = {}
        for name, path in zip(names, found, strict=True):
            if path is not None:
                means.setdefault(path, set()).add(name)
        shared = {path for path, several in means.items() if len(several) > 1}
        return [
            None if path in shared and _plain(name) != _plain(path) else path
            for name, path in zip(names, found, strict=True)
        ]

    def path_of(self, name: str) -> str:
        """The path of a file below the folder; where it needs no care it is put together."""
        if name.startswith(("/", ".")) or "/." in name or "//" in name or "\\" in name:
            return str(epath.Path(self.path) / name)
        return self._stem + name

    def nearest(self, name: str) -> str:
        """The file whose name is most like a name; empty where there is no file at all."""
        known = self._names[0]
        found = difflib.get_close_matches(_plain(name), sorted(known)[:20_000], n=1, cutoff=0)
        return known[found[0]][0] if found else ""

    def images(self) -> list[str]:
        """The paths below the folder of all image files, sorted."""
        return sorted(path for path in self._all if suffix(path) in SUFFIXES)

    @functools.cached_property
    def _all(self) -> list[str]:
        return list(walk(self.path))

    @functools.cached_property
    def _names(self) -> tuple[dict[str, list[str]], ...]:
        """Image files by plain path, by plain name, and by plain name without extension."""
        whole: dict[str, list[str]] = {}
        base: dict[str, list[str]] = {}
        stem: dict[str, list[str]] = {}
        for path in self.images():
            plain = _plain(path)
            name = posixpath.basename(plain)
            whole.setdefault(plain, []).append(path)
            base.setdefault(name, []).append(path)
            stem.setdefault(posixpath.splitext(name)[0], []).append(path)
        return whole, base, stem


def suffix(path: str) -> str:
    """The extension of a path, in small letters, with its dot."""
    return os.path.splitext(path)[1].lower()


def walk(folder: str) -> Iterable[str]:
    """The paths below a folder of its files, with forward slashes.

    Hidden ones are passed over, and folders in it that hold a run, an audit or a check.
    """
    if not storage.is_local(folder):
        found = storage.files_below(folder)
        held: dict[str, set[str]] = {}
        for path in found:
            for parent in _folders(path):
                held.setdefault(parent, set()).add(path[len(parent) + 1 :].split("/")[0])
        ours = {parent for parent, names in held.items() if _is_ours(names)}
        for path in found:
            if ours.isdisjoint(_folders(path)) and not any(map(_is_hidden, path.split("/"))):
                yield path
        return
    for parent, folders, files in os.walk(folder, followlinks=True):
        if parent != folder and _is_ours({*folders, *files}):
            folders.clear()
            continue
        folders[:] = sorted(
            name
            for name in folders
            if not _is_hidden(name) and not _leads_back(os.path.join(parent, name))
        )
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in sorted(files):
            if not _is_hidden(name):
                yield name if below == "." else f"{below}/{name}"


def _folders(path: str) -> list[str]:
    """The folders below the root that a path below it leads through."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _is_ours(names: set[str]) -> bool:
    """Whether a folder that holds these names is one that is written here."""
    return any(ours <= names for ours in OURS)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one that holds it."""
    if not os.path.islink(folder):
        return False
    here, there = os.path.realpath(os.path.dirname(folder)), os.path.realpath(folder)
    return os.path.commonpath([here, there]) == there


def _plain(name: str) -> str:
    """A name as all spellings of it are written here."""
    name = urllib.parse.unquote(name.replace("\\", "/"))
    return posixpath.normpath(unicodedata.normalize("NFC", name).casefold()).lstrip("/")


def _last(path: str, parts: int) -> str:
    return "/".join(path.split("/")[-parts:])


def _listing(folder: epath.Path) -> Iterable[str]:
    try:
        if storage.is_local(folder):
            return os.listdir(os.fspath(folder))
        return storage.list_folder(folder)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, storage.StorageError) and error.transient:
            raise
        return []
