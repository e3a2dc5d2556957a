"""The code around a model inside a replica, imported there only as `_mlflow_domino_harness`.

Standard library, flask, prometheus-client and six only, on every Python from 3.8; whatever else the model brings is
imported inside the function that needs it. Nothing of `mlflow_domino` is imported: the two share a JSON file,
environment variables, a folder and HTTP.
"""

__version__ = "0.1"
