"""Bundles in an object store, each in a folder named by its digest, for servers that fetch them by themselves.

Nothing is believed of the store: who fetches a bundle verifies it against a digest from a ledger. The mark that an
upload is complete lies in a folder of its own, because a store's clients take all that begins with a bundle's name.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clearway.bundle import Bundle, BundleError, keep
from clearway.errors import ClearwayError, UsageError
from clearway.files import sha256_file

MARKS = "complete"


class BundleStore:
    """The bundles at ``url``.

    Raises
    ------
    UsageError
        There is no client for such addresses.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            # listings are not remembered: another machine's upload counts
            self._files, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{url} cannot be opened ({error}): install the fsspec client of its scheme") from None

    def has(self, digest: str) -> bool:
        """Whether all of a bundle was uploaded.

        Raises
        ------
        ClearwayError
            The store cannot be asked.
        """
        with self._asked("looked at"):
            return bool(self._files.exists(f"{self._root}/{MARKS}/{digest}"))

    def put(self, bundle: Bundle) -> None:
        """Upload a verified bundle.

        Raises
        ------
        ClearwayError
            The store does not take it.
        """
        files = {path.relative_to(bundle.path).as_posix(): path for path in bundle.path.rglob("*") if path.is_file()}
        with self._asked("written to"):
            for name, path in sorted(files.items()):
                target = f"{self._root}/{bundle.digest}/{name}"
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(path), target)
                if self._files.size(target) != path.stat().st_size:
                    raise OSError(f"{name} did not arrive whole")
            self._files.makedirs(f"{self._root}/{MARKS}", exist_ok=True)
            listed = {name: sha256_file(path) for name, path in sorted(files.items())}
            self._files.pipe_file(f"{self._root}/{MARKS}/{bundle.digest}", json.dumps(listed, indent=2).encode())

    def get(self, digest: str, bundles: Path) -> None:
        """Keep a bundle of the store in ``bundles``, verified.

        Raises
        ------
        ClearwayError
            It cannot be fetched, or is not what its digest says.
        """
        with TemporaryDirectory() as folder:
            made = Path(folder) / "bundle"
            with self._asked("read"):
                listed: dict[str, Any] = json.loads(self._files.cat_file(f"{self._root}/{MARKS}/{digest}"))
                for name in listed:
                    path = (made / name).resolve()
                    if not path.is_relative_to(made.resolve()):
                        raise BundleError(f"{self.url}: the list of {digest[:12]} names {name!r}, outside its folder")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._files.get_file(f"{self._root}/{digest}/{name}", str(path))
            keep(made, bundles, digest)

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except ClearwayError:
            raise
        except Exception as error:  # each store's client raises types of its own
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise ClearwayError(f"the bundles at {self.url} cannot be {what}: {said}") from None
