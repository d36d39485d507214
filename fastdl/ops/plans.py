"""Plans of calls, remembered by what they follow from: checking and choosing take longer than many a call."""

from __future__ import annotations

from typing import TypeVar

Plan = TypeVar("Plan")
_MOST = 4096


class Plans(dict[tuple, Plan]):
    """A key that cannot be hashed (a list in it, a symbolic size) has none.

    Not to be asked while torch.compile traces: Dynamo reads all keys, and cannot those with numpy's numbers.
    """

    def get(self, key: tuple) -> Plan | None:
        try:
            return super().get(key)
        except TypeError:
            return None

    def put(self, key: tuple, plan: Plan) -> None:
        """Remember a plan, and forget all where there are too many."""
        if len(self) >= _MOST:
            self.clear()
        try:
            self[key] = plan
        except TypeError:
            return
