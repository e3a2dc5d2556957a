"""Scores tables that are too large for a request: their address comes in, the address of the scores goes out.

An address is whatever pandas reads and writes: a path, and with s3fs in the environment ``s3://bucket/key``.
"""

import logging

import pandas

progress = logging.getLogger("domino.progress")


def score(input_url, output_url):
    table = pandas.read_csv(input_url)
    progress.info("read %d rows", len(table), extra={"fraction": 0.5})
    table["area"] = table["width"] * table["height"]
    # The caller names the output, so that a second run, after a crash, writes the same again in the same place.
    table.to_csv(output_url, index=False)
    return {"output_url": output_url, "rows": len(table)}
