"""The locks of recipes that were resolved before on a home: the same recipe gives the same lock, without the index."""

from __future__ import annotations

from pathlib import Path

from mlflow_domino.home import read_json, write_json
from mlflow_domino.lock import Recipe, environment_hash, lean_lock, whole_lock
from mlflow_domino.resolver import Uv

__all__ = ["Recipes"]

_KINDS = {"lean": lean_lock, "whole": whole_lock}


class Recipes:
    """What is remembered of recipes.

    Parameters
    ----------
    folder : Path
        Has a file for each; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lock(self, recipe: Recipe, uv: Uv, kind: str) -> str:
        """Return a recipe's ``lean`` or ``whole`` lock, from memory or from uv; empty where there is no lean one."""
        path = self._folder / f"{recipe.key()}.json"
        known = read_json(path) or {}
        if kind not in known:
            uv.log(f"resolving {len(recipe.requirements.items)} requirements for Python {recipe.interpreter.version} …")
            known[kind] = _KINDS[kind](recipe, uv) or ""
            write_json(path, known)
        lock: str = known[kind]
        return lock

    def forget(self, environment: str) -> None:
        """Resolve those anew, the next time, whose lock an environment has."""
        for path in self._folder.glob("*.json"):
            known = read_json(path) or {}
            if environment in (environment_hash(known.get(kind) or "") for kind in _KINDS):
                path.unlink(missing_ok=True)
