"""A finding: what a check found, in which files, how grave it is, and how to repair it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ubend.core.files import read_text, write_json

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


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write findings as JSON: `version` and `findings`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_json(path, {"version": 1, "findings": [finding.to_dict() for finding in findings]})


def read_findings(path: Path) -> list[Finding]:
    """The findings in a file of `write_findings`.

    Raises:
        OSError: it cannot be read.
        KeyError, TypeError, ValueError: it is damaged.
    """
    try:
        return TypeAdapter(list[Finding]).validate_python(json.loads(read_text(path))["findings"])
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def sort_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; within a grade by check, in the order of the checks."""
    order = list(dict.fromkeys(finding.check for finding in findings))
    return sorted(findings, key=lambda finding: (GRADES.index(finding.grade), order.index(finding.check)))


def count_grades(findings: Sequence[Finding]) -> dict[Grade, int]:
    """The number of findings of each grade."""
    return {grade: sum(finding.grade == grade for finding in findings) for grade in GRADES}
