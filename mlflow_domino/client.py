"""The deployments client of MLflow's for the target `domino`: MLflow's words in, ours inside, MLflow's errors out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import click
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from mlflow_domino import asynchronous, documents, invocation
from mlflow_domino.controller import Controller
from mlflow_domino.errors import DominoError, InvalidInput
from mlflow_domino.home import Home

__all__ = ["DominoDeploymentClient"]

_logger = logging.getLogger("mlflow_domino")


class DominoDeploymentClient(BaseDeploymentClient):
    """Creates, updates, deletes and calls endpoints of one data plane.

    A deployment's name is its endpoint's name: `endpoint` must equal it or be absent. Every error is an
    `MlflowException` with MLflow's own code for it.

    Parameters
    ----------
    target_uri : str
        ``domino`` or ``domino:/NAME``.
    home : Home, optional
        Instead of the one that the environment names.
    """

    def __init__(self, target_uri: str, *, home: Home | None = None) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]  # MLflow has no annotations
        self._home = home

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a model, and return when it answers.

        Returns
        -------
        dict
            ``name, flavor, id, url, version, version_id, status, reason, data_plane, source, token``; the token is shown
            this once.
        """
        with _mlflow_errors():
            _check_endpoint(name, endpoint)
            _check_flavor(flavor)
            controller = self._controller()
            view, token = controller.create(name, model_uri, config)
            if _in_mlflow_cli():
                click.echo(documents.summary(controller.home, view, token))
            return {**documents.deployment(view), "token": token}

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Publish a new version without dropping a request; without `model_uri`, of the same source with new settings."""
        with _mlflow_errors():
            _check_endpoint(name, endpoint)
            _check_flavor(flavor)
            view = self._controller().update(name, model_uri, config)
            if _in_mlflow_cli():
                number = view.current.version.number if view.current else None
                click.echo(f"{view.endpoint.name}: version {number} answers at {view.url}")
            return documents.deployment(view)

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Remove the endpoint with its versions and tokens; one that is not there is no error."""
        with _mlflow_errors():
            _check_endpoint(name, endpoint)
            if config:
                raise InvalidInput(f"delete takes no settings (got {', '.join(map(str, config))}).")
            self._controller().delete(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Return all deployments, or the one of an endpoint."""
        with _mlflow_errors():
            return [
                documents.deployment(v) for v in self._controller().endpoints() if endpoint in (None, v.endpoint.name)
            ]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        with _mlflow_errors():
            _check_endpoint(name, endpoint)
            return documents.deployment(self._controller().endpoint(name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Call the endpoint's `latest` route; of an asynchronous one, submit a prediction and wait for its answer.

        Parameters
        ----------
        inputs : dict, list, DataFrame or ndarray
            A body of Domino's (``{"data": …}`` or ``{"parameters": […]}``) or of MLflow's scoring protocol, or what
            becomes one. A frame that MLflow's CLI made of such a body is turned back into it.

        Raises
        ------
        MlflowException
            With the endpoint's own message when it refuses the input.
        """
        with _mlflow_errors():
            name = deployment_name or endpoint
            if name is None:
                raise InvalidInput("predict: name the deployment.")
            _check_endpoint(name, endpoint)
            controller = self._controller()
            view = controller.endpoint(name)
            body = invocation.body_of(inputs)
            if view.endpoint.settings.is_async:
                return PredictionsResponse(asynchronous.Predictions(controller.home, view).run(body))
            return PredictionsResponse(invocation.call(controller.home, view, body))

    def explain(self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None) -> Any:
        raise MlflowException(
            "The domino target does not explain predictions.", error_code=ErrorCode.Value("NOT_IMPLEMENTED")
        )

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make an endpoint without a version; `update_deployment` or `create_deployment` publishes one."""
        with _mlflow_errors():
            controller = self._controller()
            controller.create_endpoint(name, config)
            return documents.deployment(controller.endpoint(name))

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Change settings; where a version runs, by a new rollout of it."""
        return self.update_deployment(endpoint, config=config)

    def delete_endpoint(self, endpoint: str) -> None:
        self.delete_deployment(endpoint)

    def list_endpoints(self) -> list[dict[str, Any]]:
        return self.list_deployments()

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        return self.get_deployment(endpoint)

    def _controller(self) -> Controller:
        return Controller.open(self.target_uri, home=self._home, say=_say)


def _say(line: str) -> None:
    if _in_mlflow_cli():
        click.echo(line, err=True)
    else:
        _logger.info(line)


def _in_mlflow_cli() -> bool:
    """Whether `mlflow deployments` runs us, which prints next to nothing of what we return."""
    context = click.get_current_context(silent=True)
    return context is not None and "deployments" in context.command_path.split()


@contextlib.contextmanager
def _mlflow_errors() -> Iterator[None]:
    try:
        yield
    except DominoError as error:
        if _in_mlflow_cli():  # which would show MLflow's exception as a traceback, and click's as a message
            raise click.ClickException(str(error)) from error
        raise MlflowException(str(error), error_code=ErrorCode.Value(error.code)) from error


def _check_endpoint(name: str, endpoint: str | None) -> None:
    if endpoint is not None and endpoint != name:
        raise InvalidInput(f"a deployment's endpoint has its name: endpoint={endpoint!r} must be {name!r} or absent.")


def _check_flavor(flavor: str | None) -> None:
    if flavor not in (None, "python_function", "pyfunc"):
        raise InvalidInput(f"flavor {flavor!r}: models are served through python_function only; leave the flavor out.")
