"""A finding: what a check found, in which files, how grave it is, and how to repair it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: the check, such as `empty mask`.
        grade: error: training or scores would be wrong; warning: look at the files; note: worth knowing.
        files: the files that it concerns, the one to repair first; may be empty for a set as a whole.
        message: what is wrong, one sentence without the names of the files.
        repair: what to do about it.
        evidence: name of a measure -> its value; a score comes with its `threshold`.
    """

    check: str
    grade: Grade
    files: tuple[Path, ...]
    message: str
    repair: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The finding for JSON."""
        return {
            "check": self.check,
            "grade": self.grade,
            "files": list(map(str, self.files)),
            "message": self.message,
            "repair": self.repair,
            "evidence": dict(self.evidence),
        }


def sort_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; within a grade by check, in the order of the checks."""
    order = list(dict.fromkeys(finding.check for finding in findings))
    return sorted(findings, key=lambda finding: (GRADES.index(finding.grade), order.index(finding.check)))


def count_grades(findings: Sequence[Finding]) -> dict[Grade, int]:
    """The number of findings of each grade."""
    return {grade: sum(finding.grade == grade for finding in findings) for grade in GRADES}
