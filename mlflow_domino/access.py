"""Tokens of endpoints: made, ended, and put where replicas read them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence

from mlflow_domino import secret
from mlflow_domino.data_planes.base import DataPlane, Log
from mlflow_domino.errors import AlreadyExists, DominoError, Expired, InvalidInput, NotFound, Unavailable, Unreachable
from mlflow_domino.home import Home
from mlflow_domino.models import Endpoint, Token, new_id
from mlflow_domino.store import Records

__all__ = ["Access"]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_DEFAULT = "default"


class Access:
    """Makes and ends tokens; each change returns when every replica has taken it.

    A command that is killed in between leaves no token that is listed and that nobody knows: replicas may take one that
    is in no record, whose text has died with the command, until the next change gives them what the records have.
    """

    def __init__(self, home: Home, records: Records, plane: DataPlane, say: Log) -> None:
        self._home = home
        self._say = say
        self._records = records
        self._plane = plane

    def first(self, endpoint: Endpoint) -> str:
        """Make the token of whoever creates the endpoint, and keep it for their `predict`.

        One that an earlier create left, which failed and told nobody, is ended.
        """
        with self._changing(endpoint):
            for token in self._records.tokens(endpoint.id):
                if token.name == _DEFAULT:
                    self._records.remove_token(token.id)
            _token, text = self._add(endpoint, _DEFAULT)
            secret.write_caller(self._home, endpoint.id, text)
            return text

    def is_begun(self, endpoint: Endpoint) -> bool:
        """Whether whoever creates the endpoint has got a token."""
        return _DEFAULT in {token.name for token in self._records.tokens(endpoint.id)}

    def create(self, endpoint: Endpoint, name: str) -> tuple[Token, str]:
        """Make a token valid beside the others; the text is returned this once, and kept nowhere."""
        if not re.fullmatch(_NAME, name):
            raise InvalidInput(f"token name {name[:60]!r}: letters, digits, '.', '_' and '-' are wanted.")
        with self._changing(endpoint):
            return self._add(endpoint, name)

    def revoke(self, endpoint: Endpoint, token: str) -> None:
        """End a token, by name or id; one that is not there is no error."""
        with self._changing(endpoint):
            known = self._records.tokens(endpoint.id)
            ended = [t for t in known if token in (t.name, t.id)]
            try:
                # Replicas first: killed in between, we leave a token that is listed, never one that only they know.
                self._put(endpoint, [t for t in known if t not in ended])
            except Unavailable as error:
                # Written, and not every replica has it yet: it is on its way. What was not written is listed still.
                if not isinstance(error, (Unreachable, Expired)):
                    self._forget(endpoint, ended)
                raise
            self._forget(endpoint, ended)

    def _forget(self, endpoint: Endpoint, tokens: Sequence[Token]) -> None:
        caller = secret.read_caller(self._home, endpoint.id)
        for one in tokens:
            self._records.remove_token(one.id)
            if caller and secret.digest(caller) == one.sha256:
                self._home.caller_token(endpoint.id).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _changing(self, endpoint: Endpoint) -> Iterator[None]:
        """Hold the endpoint's tokens alone, as whoever deletes it does in the end."""
        with self._records.lock(f"tokens-{endpoint.id}"):
            if endpoint.id not in {e.id for e in self._records.endpoints()}:
                raise NotFound(f"Endpoint {endpoint.name!r} was deleted meanwhile.")
            yield

    def _add(self, endpoint: Endpoint, name: str) -> tuple[Token, str]:
        known = self._records.tokens(endpoint.id)
        if name in {t.name for t in known}:
            raise AlreadyExists(f"A token named {name!r} exists; choose another name or revoke it first.")
        text = secret.new_token()
        token = Token(new_id(), endpoint.id, name, secret.digest(text), int(time.time() * 1000))
        try:
            self._put(endpoint, [*known, token])
            self._records.save_token(token)
        except BaseException:
            with contextlib.suppress(DominoError):
                # Nobody has got its text, so nobody is waited for.
                self._plane.put_tokens(endpoint, known, (), self._say)
            raise
        return token, text

    def _put(self, endpoint: Endpoint, tokens: Sequence[Token]) -> None:
        self._plane.put_tokens(endpoint, tokens, self._records.versions(endpoint.id), self._say)
