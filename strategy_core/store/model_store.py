"""Model files in a folder, each named after the sha256 of its content."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import structlog

from strategy_core.domain.errors import Invalid, InvalidSetting, Refused, Untrusted

_LOCK = ".lock"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelStore:
    """A folder of model files. Versions name its files in their configs, so it must not be moved.

    A worker compares the content of a file with the fingerprint of its version. So a damaged or exchanged file is
    refused.
    """

    folder: Path

    def open(self) -> None:
        """Create the folder if there is none.

        Raises:
            InvalidSetting: files cannot be written there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _LOCK).touch()
        except OSError as error:
            allowed = f"a folder in which files can be written ({error.strerror})"
            raise InvalidSetting("ROLLOUT_MODELS", str(self.folder), allowed) from None

    def path(self, content: bytes) -> Path:
        """Return where a model file with this content is, or would be."""
        return self.folder / f"{sha256(content).hexdigest()}.json"

    @contextmanager
    def added(self, content: bytes) -> Iterator[Path]:
        """Write a file for the block, which registers a version with it. If the version is refused, delete it again.

        One process at a time, so that none deletes the file of another. A file with the name, but another content, is
        damaged and replaced.
        """
        self.open()
        with (self.folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.path(content)
            known = file.is_file()
            if not known or file.read_bytes() != content:
                if known:
                    log.warning("models.damaged", file=str(file))
                self._write(file, content)
            try:
                yield file
            except (Refused, Invalid, Untrusted):  # all of them come before the version is stored
                if not known:
                    file.unlink()
                raise

    def _write(self, file: Path, content: bytes) -> None:
        """Write the whole file or none."""
        with NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as draft:
            try:
                draft.write(content)
                draft.flush()
                os.fsync(draft.fileno())
                os.fchmod(draft.fileno(), 0o444)
                Path(draft.name).replace(file)
            except BaseException:
                Path(draft.name).unlink()
                raise
