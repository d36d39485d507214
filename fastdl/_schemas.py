"""Every raw operator's schema, and one hash over all of them that the shared objects carry.

Knows no torch: setup.py reads the hash from here before anything is built.
"""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

FACTS = (
    "_cpu_isa() -> int",
    "_best_cpu_isa() -> int",
    "_cpu_is_amd() -> bool",
    "_cpu_halves_vectors() -> bool",
)


def family_schemas() -> dict[str, tuple[str, ...]]:
    """Family name -> its schemas, read from ops/<family>/schema.py."""
    paths = sorted((Path(__file__).parent / "ops").glob("*/schema.py"))
    return {path.parent.name: runpy.run_path(str(path))["SCHEMAS"] for path in paths}


def schema_hash() -> str:
    """16 hex digits over every schema of the package."""
    text = "\n".join((*FACTS, *(schema for schemas in family_schemas().values() for schema in schemas)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


SCHEMA_HASH = schema_hash()
