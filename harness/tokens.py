"""Who may call: tokens, of which only the SHA-256 is known here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import threading
from typing import Iterable, Tuple

from .errors import Unauthorized
from .log import log
from .status import write_atomically

__all__ = ["Tokens"]

#: Whose token may do more than call the model; an entry of tokens.json.
_GATEWAY = "gateway"
_Stamp = Tuple[int, int, int]


class Tokens:
    """The valid tokens of an endpoint, read again when their file changes.

    Parameters
    ----------
    folder : str or None
        Folder of ``tokens.json``, ``{"tokens": [{"id", "sha256"}]}``. No file, no entry. A file that cannot be read
        as that leaves the tokens as they were: it was no revocation.
    digests : iterable of str
        SHA-256 in hexadecimal of tokens that are valid beside the file's.
    open_to_all : bool
        Whether everybody may call (DOMINO_AUTH=none).
    acknowledgement : str
        File that is to hold the SHA-256 of the tokens.json in use; empty for none.
    """

    def __init__(
        self,
        folder: str | None,
        *,
        digests: Iterable[str] = (),
        open_to_all: bool = False,
        acknowledgement: str = "",
    ) -> None:
        self._path = os.path.join(folder, "tokens.json") if folder else ""
        self._fixed = tuple(digest.lower() for digest in digests)
        self._open_to_all = open_to_all
        self._acknowledgement = acknowledgement
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = (-1, -1, -1)
        self._unreadable: _Stamp | None = None
        self._digests: tuple[bytes, ...] = tuple(digest.encode() for digest in self._fixed)
        self._gateways = self._digests
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it is another one than last time: costs one `stat` if it is not."""
        if self._path and self._read_stamp() != self._stamp:
            with self._lock:
                self._read()

    def check(self, authorization: str, *, by_gateway: bool = False) -> None:
        """Refuse a caller without a valid token.

        Parameters
        ----------
        authorization : str
            The header: Bearer with a token, or Basic with the token as user and as password.
        by_gateway : bool
            Whether only the gateway may call; tokens that the environment names are as good as its own.

        Raises
        ------
        Unauthorized
        """
        if self._open_to_all:
            return
        self.refresh()
        token = _token_of(authorization)
        if not token:
            raise Unauthorized("a token is needed: Basic with the token as user and as password, or Bearer")
        digest = hashlib.sha256(token).hexdigest().encode()
        known = False
        for valid in self._gateways if by_gateway else self._digests:  # all of them: the time it takes tells nothing
            known |= hmac.compare_digest(digest, valid)
        if not known:
            raise Unauthorized("this token is not, or no longer, valid for this endpoint")

    def is_gateway(self, authorization: str) -> bool:
        try:
            self.check(authorization, by_gateway=True)
        except Unauthorized:
            return False
        return True

    def _read_stamp(self) -> _Stamp | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> None:
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        try:
            with open(self._path, "rb") as file:
                content = file.read()
            listed = [
                (entry.get("id"), str(entry["sha256"]).lower().encode()) for entry in json.loads(content)["tokens"]
            ]
        except FileNotFoundError:
            content, listed = b"", []
        except OSError as error:
            # A kubelet gives a new file to its group a moment after it has put it there: looked at again next time.
            if stamp != self._unreadable:
                log(f"tokens.json cannot be read yet, the tokens stay as they were: {error}")
            self._unreadable = stamp
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log(f"tokens.json cannot be read, the tokens stay as they were: {error}")
            self._stamp = stamp
            return
        fixed = tuple(digest.encode() for digest in self._fixed)
        self._digests = fixed + tuple(digest for _, digest in listed)
        self._gateways = fixed + tuple(digest for name, digest in listed if name == _GATEWAY)
        self._stamp = stamp
        if self._acknowledgement:
            write_atomically(self._acknowledgement, hashlib.sha256(content).hexdigest().encode())


def _token_of(authorization: str) -> bytes:
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value.encode("utf-8", "surrogateescape")
    if scheme.lower() != "basic":
        return b""
    try:
        user, colon, password = base64.b64decode(value, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return b""
    return user if colon and hmac.compare_digest(user, password) else b""
