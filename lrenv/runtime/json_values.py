"""JSON that every reader takes: it knows neither NaN nor infinity, and strict readers fail where they are written."""

from __future__ import annotations

import json
import math
from typing import Any


def json_value(value: Any, exact: bool = False) -> Any:
    """Returns a value of which each number is finite, dicts, lists and tuples within it likewise.

    Args:
        value: what is to be written as JSON.
        exact: write NaN and infinities as text, "nan", "inf" and "-inf", which `float` reads back; else they are None.
    """
    if isinstance(value, dict):
        return {key: json_value(x, exact) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(x, exact) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if exact else None
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON with null for numbers that are not finite.

    What else JSON doesn't know, such as an optimizer, is written as it prints.
    """
    return json.dumps(json_value(value), indent=indent, allow_nan=False, default=repr)
