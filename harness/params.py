"""The inference parameters of a signature: what a request may say beside its inputs."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from .kinds import kind_of
from .problems import Mismatch, Problems, show
from .scalars import Kind

__all__ = ["Params", "compile_params"]


class Params:
    """Inference parameters."""

    def __init__(self, specs: Mapping[str, tuple[Kind, bool, Any]]) -> None:
        self._specs = specs

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._specs)

    def take(self, params: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
        """Return the given parameters as the model gets them; MLflow adds the defaults of the others."""
        taken = {}
        for name, value in params.items():
            if name not in self._specs:
                known = ", ".join(self._specs)
                problems.add(f"param {name!r}", f"is not in the model's signature, which has {known}")
                continue
            kind, is_list, _ = self._specs[name]
            try:
                taken[name] = self._take(kind, is_list, value)
            except Mismatch as mismatch:
                problems.add(f"param {name!r}", str(mismatch))
        return taken

    @staticmethod
    def _take(kind: Kind, is_list: bool, value: Any) -> Any:
        if is_list:
            if not isinstance(value, list):
                raise Mismatch(f"{show(value)} is not a list")
            return [kind.parameter(element) for element in value]
        return None if value is None else kind.parameter(value)

    def schema(self) -> dict[str, Any]:
        properties = {}
        for name, (kind, is_list, default) in self._specs.items():
            schema = {"type": "array", "items": kind.schema()} if is_list else kind.schema()
            properties[name] = dict(schema, default=default)
        return {"type": "object", "properties": properties, "additionalProperties": False}


def compile_params(specs: Sequence[Mapping[str, Any]]) -> Params:
    """Compile what an MLmodel file holds as ``params`` of its signature."""
    table = {}
    for spec in specs:
        described = dict(spec, type=spec.get("type") or spec.get("dtype"))
        table[str(spec["name"])] = (kind_of(described), spec.get("shape") is not None, spec.get("default"))
    return Params(table)
