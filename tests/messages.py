"""Models that seldon-core's own environment could not run, and messages to the replicas of asynchronous versions."""

from __future__ import annotations

import contextlib
import json
import subprocess
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.replica import Answer, UnixConnection

_SAVE = """
import json, sys, mlflow, numpy, pandas
class Sums(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        import numpy, pandas
        assert numpy.__version__.startswith("2.") and pandas.__version__.startswith("3."), (numpy, pandas)
        return (model_input["x"] * 2).rename("twice").to_frame().assign(text=model_input["text"].str.upper())
frame = pandas.DataFrame({"x": [1.5, 2.0], "text": ["a", "é"]})
signature = mlflow.models.infer_signature(frame, Sums().predict(None, frame))
mlflow.pyfunc.save_model(sys.argv[1], python_model=Sums(), signature=signature, input_example=frame,
                         pip_requirements=["mlflow==3.17.2", "numpy>=2", "pandas>=3"])
"""
_PACKAGES = ("mlflow==3.17.2", "numpy>=2", "pandas>=3")

#: Calls a microservice by seldon-core's own client, in its environment.
CLIENT = """
import json, sys
import numpy
from seldon_core.seldon_client import SeldonClient
address, = sys.argv[1:]
client = SeldonClient(microservice_endpoint=address)
seen = []
for options in (
    {"json_data": {"parameters": {"a": 1, "b": 2}}},
    {"data": numpy.array([[1.0, 2.0]]), "names": ["a", "b"], "payload_type": "ndarray"},
    {"data": numpy.array([[1.0, 2.0]]), "payload_type": "tensor"},
    {"json_data": {"parameters": {"nothing": 1}}},
):
    answer = client.microservice(transport="rest", method="predict", **options)
    sum_ = answer.response.jsonData.struct_value.fields["sum"].number_value if answer.success else None
    seen.append([answer.success, sum_, answer.response.status.info])
print(json.dumps(seen))
"""


def save_modern(interpreter: Path, folder: Path) -> Path:
    """Save a model under an interpreter with numpy 2 and pandas 3; return its directory."""
    import uv

    program = uv.find_uv_bin()
    python = folder / "venv" / "bin" / "python"
    subprocess.run([program, "venv", "-q", "--python", interpreter, folder / "venv"], check=True)
    subprocess.run([program, "pip", "install", "-q", "--python", python, *_PACKAGES], check=True)
    subprocess.run([python, "-W", "ignore", "-c", _SAVE, folder / "model"], check=True, capture_output=True)
    return folder / "model"


def ask(address: str, method: str, path: str, message: Any = None, *, token: str = "", timeout: float = 60) -> Answer:
    """Call a replica's microservice where the data plane says that it takes messages."""
    connection: HTTPConnection
    if address.startswith("/"):
        connection = UnixConnection(address, timeout)
    else:
        connection = HTTPConnection(address, timeout=timeout)
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with contextlib.closing(connection):
        connection.request(method, path, None if message is None else json.dumps(message), headers)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


def predict(address: str, token: str, **arguments: Any) -> Answer:
    """Ask a replica for a prediction, as the dispatcher does."""
    message = {"jsonData": {"parameters": arguments}, "meta": {"puid": "p-1"}}
    return ask(address, "POST", "/api/v1.0/predictions", message, token=token)


def interpreter(minor: str) -> Path | None:
    """Return a Python of this machine that works, such as 3.13; None where there is none."""
    for path in sorted(Path.home().glob(f".pyenv/versions/{minor}.*/bin/python")):
        if subprocess.run([path, "-V"], capture_output=True, check=False).returncode == 0:
            return path
    return None
