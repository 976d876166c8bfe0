"""What a check found, and many of them as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from equidyn.core.errors import EquidynError


class ConformanceError(EquidynError, AssertionError):
    """A model does not keep a promise; the line names the check that is furthest out."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: the check's name, a key of `CHECKS` (or the name that `check_cutoff`, `check_extensivity` give).
        error: largest difference relative to the size of the output, or the number of faults; NaN where skipped.
        tolerance: largest error that passes.
        passed: whether it passed; None where the check cannot apply to this sample and was skipped.
        detail: the output with the largest error, or why the check failed or was skipped.
        required: False where the check was measured for information only.
    """

    name: str
    error: float
    tolerance: float
    passed: bool | None
    detail: str = ""
    required: bool = True

    @property
    def status(self) -> Literal["passed", "FAILED", "skipped", "info"]:
        """One word for the table."""
        if self.passed is None:
            return "skipped"
        if not self.required:
            return "info"
        return "passed" if self.passed else "FAILED"


@dataclass(frozen=True)
class Report:
    """All checks of one model on one sample."""

    checks: tuple[Check, ...]

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError where there is none."""
        return {check.name: check for check in self.checks}[name]

    @property
    def failures(self) -> tuple[Check, ...]:
        """Required checks that failed, the one furthest beyond its tolerance first."""
        failed = [check for check in self.checks if check.required and check.passed is False]
        return tuple(sorted(failed, key=_excess, reverse=True))

    @property
    def passed(self) -> bool:
        """Whether no required check failed and at least one could be run."""
        return not self.failures and any(check.required and check.passed for check in self.checks)

    def errors(self) -> dict[str, float]:
        """The measured error of every check that was run, by name."""
        return {check.name: check.error for check in self.checks if check.passed is not None}

    def raise_if_failed(self) -> None:
        """Raise ConformanceError, one line naming the worst check, unless the report passed."""
        if self.passed:
            return
        if not self.failures:
            raise ConformanceError("no required check could be run on this sample, so nothing was shown")
        worst, *others = self.failures
        also = f" (also failed: {', '.join(check.name for check in others)})" if others else ""
        because = f": {worst.detail}" if worst.detail else ""
        raise ConformanceError(
            f"conformance check {worst.name} failed, error {worst.error:.1e} > {worst.tolerance:.1e}{because}{also}"
        )

    def __str__(self) -> str:
        """A small aligned table, one row per check."""
        rows = [("check", "error", "tolerance", "result", "detail")]
        for check in self.checks:
            numbers = ("-", "-") if check.passed is None else (f"{check.error:.1e}", f"{check.tolerance:.1e}")
            rows.append((check.name, *numbers, check.status, check.detail))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def measured(name: str, error: float, tolerance: float, detail: str = "") -> Check:
    """A check that was run; it passes when the error is within the tolerance (a NaN is not)."""
    error = math.inf if math.isnan(error) else error
    return Check(name, error, tolerance, error <= tolerance, detail)


def skipped(name: str, reason: str) -> Check:
    """A check that cannot apply to this sample."""
    return Check(name, math.nan, math.nan, None, reason)


def _excess(check: Check) -> float:
    """How many times over its tolerance the error is (tolerance 0 counts as the smallest there is)."""
    return check.error / max(check.tolerance, 1e-300)
