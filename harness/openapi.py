"""/openapi.json: what this model takes, from its signature."""

from __future__ import annotations

import inspect
from typing import Any, Dict, Optional

__all__ = ["arguments_schema", "document"]


def document(schemas: Dict[str, Any]) -> Dict[str, Any]:
    return {"openapi": "3.0.3", "schemas": schemas}


def arguments_schema(signature: Optional[inspect.Signature]) -> Dict[str, Any]:
    return {}
