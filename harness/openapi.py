"""/openapi.json: what this model takes, from its signature or its function's own."""

from __future__ import annotations

import inspect
from typing import Any

from . import __version__
from .config import Config

__all__ = ["arguments_schema", "document", "model_schemas"]

_ERRORS = {
    "400": "The request does not fit the model; the message names the argument, or row and column.",
    "401": "No valid token: Basic with the token as user and as password, or Bearer.",
    "413": "The body is larger than max_body.",
    "415": "The content type is not one of those listed.",
    "429": "All replicas are busy and their queues full; try again after Retry-After.",
    "500": "The model failed, or its result has no JSON form; the traceback is in the replica's log.",
    "503": "Stopped or not ready.",
    "504": "The time limit was over.",
}
_ENVELOPE = {
    "type": "object",
    "required": ["result", "request_id", "model_time_in_ms", "timing", "release"],
    "properties": {
        "result": {"description": "What the model returned."},
        "request_id": {"type": "string", "pattern": "^[A-Z0-9]{16}$"},
        "model_time_in_ms": {"type": "integer"},
        "timing": {"type": "number", "description": "The model's time in milliseconds."},
        "release": {"type": "object"},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "code", "request_id"],
            "properties": {"message": {"type": "string"}, "code": {"type": "string"}, "request_id": {"type": "string"}},
        }
    },
}


def document(config: Config, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document of a model.

    Parameters
    ----------
    config : Config
    schemas : dict
        As `Predictor.describe` gives them: JSON schemas of the bodies, ``model`` and maybe ``invocations``.
    """
    paths = {"/model": _operation("Call the model", schemas["model"], _ENVELOPE)}
    if "invocations" in schemas:
        answer = {"type": "object", "properties": {"predictions": {}}, "required": ["predictions"]}
        paths["/invocations"] = _operation("Call the model by MLflow's protocol", schemas["invocations"], answer)
        paths["/invocations"]["post"]["requestBody"]["content"]["text/csv"] = {"schema": {"type": "string"}}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": config.endpoint_name or "model",
            "version": str(config.version_number),
            "description": f"Served by mlflow-domino's harness {__version__}.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic", "description": "The token as user and as password."},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"basic": []}, {"bearer": []}],
    }


def _operation(summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        "200": {"description": "The model's answer.", "content": {"application/json": {"schema": answer}}}
    }
    responses.update({status: {"description": text, "content": error} for status, text in _ERRORS.items()})
    content = {"application/json": {"schema": body}}
    return {"post": {"summary": summary, "requestBody": {"required": True, "content": content}, "responses": responses}}


def arguments_schema(signature: inspect.Signature | None) -> dict[str, Any]:
    """Return the schema of /model for a function: its parameters by name, or by position."""
    properties: dict[str, Any] = {}
    required = []
    anything = signature is None
    for name, parameter in signature.parameters.items() if signature is not None else ():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            anything = anything or parameter.kind is parameter.VAR_KEYWORD
            continue
        properties[name] = _of_annotation(parameter.annotation)
        if parameter.default is parameter.empty:
            required.append(name)
        elif isinstance(parameter.default, (str, int, float, bool, type(None))):
            properties[name]["default"] = parameter.default
    data: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": anything}
    if required:
        data["required"] = required
    return _either(data, {"type": "array", "items": {}})


def _either(data: dict[str, Any], parameters: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
    more = {"params": params} if params is not None else {}
    bodies = [
        {"type": "object", "required": [key], "properties": dict({key: schema}, **more), "additionalProperties": False}
        for key, schema in (("data", data), ("parameters", parameters))
    ]
    return {"oneOf": bodies}


def _of_annotation(annotation: Any) -> dict[str, Any]:
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    names = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "dict": "object"}
    if name == "list":
        return {"type": "array", "items": {}}
    return {"type": names[name]} if name in names else {}


def model_schemas(signature: Any) -> dict[str, Any]:
    """Return the schemas of /model and /invocations for a compiled signature (`schema.Signature`)."""
    inputs = signature.inputs
    params = signature.params.schema() if signature.params is not None else None
    row = inputs.schema() if inputs is not None else {"type": "object", "additionalProperties": True}
    data = {"oneOf": [row, _many(row)]} if _has_rows(row) and not hasattr(inputs, "tensors") else row
    records = {"type": "array", "items": row}
    forms: dict[str, Any] = {"dataframe_records": records, "dataframe_split": _SPLIT, "inputs": {}, "instances": {}}
    if hasattr(inputs, "tensors"):
        forms = {"inputs": row if inputs.named else row["properties"]["inputs"]}
    bodies = [
        {
            "type": "object",
            "required": [key],
            "properties": dict({key: schema}, **({"params": params} if params else {})),
        }
        for key, schema in forms.items()
    ]
    return {"model": _either(data, {"type": "array", "items": {}}, params), "invocations": {"oneOf": bodies}}


_SPLIT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "columns": {"type": "array", "items": {"type": "string"}},
        "index": {"type": "array", "items": {}},
        "data": {"type": "array", "items": {"type": "array", "items": {}}},
    },
}


def _has_rows(row: dict[str, Any]) -> bool:
    return row.get("type") == "object" and bool(row.get("properties"))


def _many(row: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of many rows: a list for each column."""
    columns = {name: {"type": "array", "items": schema} for name, schema in row["properties"].items()}
    return dict(row, properties=columns)
