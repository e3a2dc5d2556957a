"""The text of `mlflow deployments help -t domino`, written from the table of settings."""

from __future__ import annotations

from mlflow_domino.config import describe

__all__ = ["target_text"]

_TEXT = """\
domino: a model or project code as a versioned, authenticated HTTP endpoint.

  mlflow deployments create  -t domino --name iris -m models:/iris@champion
  mlflow deployments update  -t domino --name iris -m models:/iris/4
  mlflow deployments predict -t domino --name iris -I body.json
  mlflow deployments create  -t domino --name mine -m ./project -C file=model.py -C function=predict

Target URIs: domino (this machine), domino:/NAME (a data plane declared in $MLFLOW_DOMINO_HOME/config.toml).
`mlflow-domino --help` has the rest: status, logs, tokens, scale, promote, rollback.

Keys of -C, each as key=value (env.NAME=value for a variable, config=@settings.yaml for a file):

{table}
"""


def target_text() -> str:
    rows = describe()
    width = max(len(key) for key, *_ in rows)
    lines = []
    for key, kind, default, help_ in rows:
        shown = f"{kind}; default {default}" if default else kind
        lines.append(f"  {key:<{width}}  {help_} ({shown})")
    return _TEXT.format(table="\n".join(lines))
