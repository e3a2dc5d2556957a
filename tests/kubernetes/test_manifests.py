"""The objects as real servers read them, and a pod as its node runs it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.installation import gateway_secret
from mlflow_domino.data_planes.manifests import MODEL_PORT, PROBE_PORT, Place, variables_manifest
from mlflow_domino.data_planes.tier import Tier
from mlflow_domino.dialect import Manifest
from mlflow_domino.labels import KIND, VERSION, tokens_name
from tests.conftest import eventually
from tests.published import DECLARATIONS, ENDPOINT, SETTINGS, TIERS, gateway_objects, objects, published
