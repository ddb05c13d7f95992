"""Files that come with the package: tables in JSON, and the tiny CLIP of the quickstart."""

import functools
import importlib.resources
import json
from typing import Any


@functools.cache
def read_json(name: str) -> Any:
    """Return what a table of the package holds; it is shared, so it must not be changed."""
    return json.loads((importlib.resources.files(__name__) / name).read_text("utf-8"))
