"""The file that has the cluster's key: making one, reading it."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from protocol.keyring import KEY_BYTES, OPEN, BadKey, Keyring

FILE_BYTES_MAX = 64 * 1024


def new_key() -> str:
    """A key nobody has, as a line of a key file."""
    return secrets.token_hex(KEY_BYTES)


def make_key_file(path: Path) -> None:
    """Write a new key to a file that only its owner may read. Raises OSError, also when there is one already."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        try:
            file.write(f"{new_key()}\n")
            file.flush()
        except OSError:
            # Half a key would be in the way of a whole one.
            with suppress(OSError):
                path.unlink()
            raise


def read_key_file(path: Path | None) -> Keyring:
    """The keys in a file, and without a file none that is secret. Raises BadKey, with a sentence for who named it."""
    if path is None:
        return OPEN
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise BadKey(f"the key file {path} cannot be read: {error.strerror}; minidfs keygen FILE makes one") from None
    try:
        return Keyring.parse(content.decode("ascii"))
    except UnicodeDecodeError:
        raise BadKey(f"the key file {path} is no text") from None
    except BadKey as error:
        raise BadKey(f"the key file {path} cannot be used: {error}") from None
