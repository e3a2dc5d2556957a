"""Whether requests of a model can be joined: what its description tells of it, before anything is built.

The replica decides (``harness/joined.py``); what is refused here would be refused there, after minutes of building.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_domino.config import Settings
from mlflow_domino.errors import InvalidInput
from mlflow_domino.models import Source

__all__ = ["check_joining"]

_PROJECT = "calls of a project's function cannot be joined, only rows for a registered model with a signature"


def check_joining(source: Source, folder: Path, settings: Settings) -> None:
    """Refuse `max_batch_size` above 1 where rows are not known to be independent.

    Parameters
    ----------
    source : Source
    folder : Path
        Where it was copied to.
    settings : Settings

    Raises
    ------
    InvalidInput
        With the reason, and the way out.
    """
    if settings.max_batch_size == 1:
        return
    why = _PROJECT if source.kind == "File" else _reason(folder, settings)
    if why:
        raise InvalidInput(f"max_batch_size={settings.max_batch_size}: {why}; set max_batch_size=1.")


def _reason(folder: Path, settings: Settings) -> str:
    import yaml

    document = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    signature = document.get("signature")
    if not signature:
        why = "the model has no signature"
    elif document.get("is_signature_from_type_hint"):
        why = "the model's signature came from a type hint"
    elif not settings.strict_schema:
        why = "its requests are not checked here (strict_schema=false)"
    else:
        why = _reason_of_inputs(signature)
    return f"requests of this model cannot be joined: {why}" if why else ""


def _reason_of_inputs(signature: Mapping[str, Any]) -> str:
    try:
        inputs: Sequence[Mapping[str, Any]] = json.loads(signature.get("inputs") or "null") or ()
        if not inputs:
            return "the model's signature names no inputs"
        return next(filter(None, map(_reason_of, inputs)), "")
    except (ValueError, TypeError, LookupError, AttributeError):
        return ""  # a form that only the replica may know


def _reason_of(spec: Mapping[str, Any]) -> str:
    name = spec.get("name")
    if spec.get("type") == "any":
        return f"column {name!r} may hold anything" if name else "its column may hold anything"
    if spec.get("type") != "tensor":
        return ""
    dtype, shape = spec["tensor-spec"]["dtype"], list(spec["tensor-spec"]["shape"])
    words = f"tensor {name!r}" if name else "its tensor"
    if not shape or shape[0] != -1:
        return f"the first length of {words} is fixed, shape {shape}: it is no number of rows"
    return f"{words} may hold anything" if dtype == "object" else ""
