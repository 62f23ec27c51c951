"""JSON that every reader takes: the format has neither NaN nor infinity, and strict readers fail at them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np


def json_value(value: Any, exact: bool = False) -> Any:
    """Returns the value with replacements for numbers that are not finite, also within dicts, lists and tuples.

    NumPy's numbers become Python's.

    Args:
        value: a value to be written as JSON.
        exact: replace NaN and infinities by text, "nan", "inf" and "-inf", which `float` reads back; else by None.
    """
    if isinstance(value, dict):
        return {key: json_value(x, exact) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(x, exact) for x in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if exact else None
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON, with null for numbers that are not finite.

    Objects that JSON doesn't have, such as an optimizer, are written as their `repr`.
    """
    return json.dumps(json_value(value), indent=indent, allow_nan=False, default=repr)
