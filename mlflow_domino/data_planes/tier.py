"""Hardware tiers: how much of a machine a replica gets, as ``config.toml`` names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_domino.data_planes.declaration import tables
from mlflow_domino.errors import InvalidInput, NotFound
from mlflow_domino.home import Home
from mlflow_domino.parsers import decimal, size, whole

__all__ = ["Tier", "tier_named"]


@dataclass(frozen=True)
class Tier:
    """A table ``[hardware_tiers.NAME]``; zero leaves a thing unlimited.

    Attributes
    ----------
    cores : float
    memory : int
        Bytes.
    gpus : int
        Whole devices.
    """

    cores: float = 0.0
    memory: int = 0
    gpus: int = 0


_PARSERS = {"cores": decimal(0.01, 1024), "memory": size(6 << 20, 1 << 44), "gpus": whole(0, 64)}
#: Meant for other kinds of data planes.
_ELSEWHERE = ("node_selector", "tolerations", "data_plane", "spot")


def tier_named(name: str, home: Home) -> Tier:
    """Return a tier; without limits where no name is given.

    Raises
    ------
    NotFound
        Naming the tiers that there are.
    InvalidInput
        Naming the key that is wrong.
    """
    if not name:
        return Tier()
    known = tables(home.config, "hardware_tiers")
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise NotFound(f"hardware_tier={name}: {home.config} has no [hardware_tiers.{name}]; there are: {listed}.")
    return Tier(**_checked(known[name], f"{home.config}: [hardware_tiers.{name}]"))


def _checked(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        if key in _ELSEWHERE:
            continue
        if key not in _PARSERS:
            raise InvalidInput(f"{where} unknown key {key!r}; there are: {', '.join((*_PARSERS, *_ELSEWHERE))}.")
        try:
            values[key] = _PARSERS[key](value)
        except ValueError as error:
            raise InvalidInput(f"{where} {key} = {value!r}: {error}.") from None
    return values
