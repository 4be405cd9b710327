"""One YAML file in, one checked ``Config`` out, or every mistake with its line and column.

pydantic and YAML stay in here. The file's keys are described in ``schema``, what a value may be in
``rules``; docs/configuration.md is generated from both by ``reference``.
"""

from __future__ import annotations

from lb_xdp.config.check import MAX_SERVICE_BACKENDS, MAX_SERVICES, MAX_SNAT_ADDRESSES
from lb_xdp.config.effective import effective
from lb_xdp.config.load import load_config, parse_config
from lb_xdp.config.schema import json_schema

__all__ = [
    "MAX_SERVICES",
    "MAX_SERVICE_BACKENDS",
    "MAX_SNAT_ADDRESSES",
    "effective",
    "json_schema",
    "load_config",
    "parse_config",
]
