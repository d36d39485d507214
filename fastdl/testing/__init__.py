"""How the project judges itself, for tests, benchmarks and users: samples, the error rule, a timer, `check()`."""

from .check import CheckResult, check
from .error_rule import ErrorReport, judge

__all__ = ["CheckResult", "ErrorReport", "check", "judge"]
