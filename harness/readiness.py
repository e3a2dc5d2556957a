"""What `/ready` says: whether every worker answers, and in its headers what a data plane beyond the folder waits for."""

from __future__ import annotations

import os

from .slots import Microservice, Phase, Slots, State

__all__ = ["Readiness"]

_TOKENS, _IN_FLIGHT = "X-Domino-Tokens", "X-Domino-In-Flight"


class Readiness:
    """Reads what the workers of a replica share; nothing that it tells is secret.

    Parameters
    ----------
    slots : Slots
    folder : str
        Where workers acknowledge the tokens that they use.
    """

    def __init__(self, slots: Slots, folder: str) -> None:
        self._slots = slots
        self._folder = folder

    @property
    def open(self) -> bool:
        """Whether all workers are loaded and warm; on a port one answers as soon as it is, before the others."""
        return self._slots.phase is Phase.READY and self._slots.microservice is not Microservice.MISSING

    def headers(self, *, own: int = 1) -> dict[str, str]:
        """Return how many requests but `own` are in flight, and the SHA-256 of the tokens.json that all workers use.

        The latter is absent while they use different ones, and where tokens come from the environment alone. A worker
        that is being replaced counts for nothing: it reads the file before it serves.
        """
        headers = {_IN_FLIGHT: str(max(0, self._slots.count_in_flight() - own))}
        numbers = range(1, self._slots.workers + 1)
        used = {self._acknowledged(n) for n in numbers if self._slots.worker(n).state == State.READY}
        if len(used) == 1 and "" not in used:
            headers[_TOKENS] = used.pop()
        return headers

    def _acknowledged(self, worker: int) -> str:
        try:
            with open(os.path.join(self._folder, f"tokens.{worker}"), encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            return ""
