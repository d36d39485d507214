"""A package, so that another distribution's top-level `tests` cannot stand in its place."""
