"""The listener's certificate: checked, and handed to Envoy whole."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway import envoy
from mlflow_domino.home import write_text

__all__ = ["renew"]


def renew(file: Path, chain: Path, key: Path) -> bool:
    """Have Envoy use what two PEM files hold now; false when it does already.

    Parameters
    ----------
    file : Path
        The file that Envoy watches.
    chain, key : Path
        Certificate chain and private key; a renewal may write them one after the other.

    Raises
    ------
    InvalidInput
        They cannot be read, or do not belong together (yet); what was in use stays.
    """
    try:
        # A password that no key has: otherwise OpenSSL would ask for it at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, password=lambda: "")
        resource = envoy.certificate(chain.read_text("ascii"), key.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{chain} and {key} are no certificate and its private key in PEM: {error}") from error
    content = json.dumps(envoy.discovery("certificate", [resource]), indent=1, sort_keys=True) + "\n"
    if file.exists() and file.read_text("utf-8") == content:
        return False
    write_text(file, content)
    return True
