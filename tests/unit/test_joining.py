"""What a model's description tells of joining its requests: the same as the replica would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array

from harness.joined import reason_against
from harness.schema import compile_signature
from mlflow_domino.config import Settings
from mlflow_domino.errors import InvalidInput
from mlflow_domino.joining import check_joining
from mlflow_domino.models import FileSource, RegistrySource

MODEL = RegistrySource("models:/m/1", "models:/m/1", "0" * 64, "m", "1", "sklearn")


def columns(*specs: Any) -> ModelSignature:
    return ModelSignature(inputs=Schema(list(specs)))


def tensor(dtype: Any, *shape: int) -> ModelSignature:
    return columns(TensorSpec(np.dtype(dtype), shape))


def refused(folder: Path, signature: ModelSignature | None, more: Any = (), **settings: Any) -> str:
    document = {"flavors": {"python_function": {}}, **dict(more)}
    if signature is not None:
        document["signature"] = signature.to_dict()
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    try:
        check_joining(MODEL, folder, Settings(**{"max_batch_size": 8, **settings}))
    except InvalidInput as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (columns(ColSpec("double", "x"), ColSpec(Array("long"), "y")), ""),
        (columns(ColSpec("double", "x"), ColSpec(AnyType(), "y", required=False)), "column 'y' may hold anything"),
        (tensor("float32", -1, 3), ""),
        (tensor("float32", 2, 3), "shape [2, 3]"),
        (tensor(object, -1), "may hold anything"),
    ],
)
def test_signatures_are_judged_as_in_the_replica(tmp_path: Path, signature: ModelSignature, words: str) -> None:
    told = refused(tmp_path, signature)
    assert (words in told) if words else not told
    assert bool(told) == bool(reason_against(compile_signature(signature.to_dict()).inputs))
    assert not refused(tmp_path, signature, max_batch_size=1)


def test_what_cannot_be_known_to_be_independent_is_refused(tmp_path: Path) -> None:
    assert "has no signature" in refused(tmp_path, None)
    only_params = ModelSignature(params=ParamSchema([ParamSpec("p", "long", 1)]))
    assert "names no inputs" in refused(tmp_path, only_params)
    good = columns(ColSpec("double", "x"))
    assert "type hint" in refused(tmp_path, good, {"is_signature_from_type_hint": True})
    assert "strict_schema=false" in refused(tmp_path, good, strict_schema=False)
    assert "max_batch_size=8" in refused(tmp_path, None)


def test_project_code_is_refused(tmp_path: Path) -> None:
    project = FileSource("/p", "/p", "0" * 64, "model.py", "predict")
    with pytest.raises(InvalidInput, match="a project's function cannot be joined"):
        check_joining(project, tmp_path, Settings(max_batch_size=2))


def test_a_form_that_is_not_known_is_left_to_the_replica(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"signature": {"inputs": '[{"type": "tensor"}]'}}))
    check_joining(MODEL, tmp_path, Settings(max_batch_size=8))
