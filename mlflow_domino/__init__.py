"""Put an MLflow model or plain project code behind a versioned, authenticated HTTP endpoint."""

__version__ = "0.1.0"
