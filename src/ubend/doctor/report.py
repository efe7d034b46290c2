"""Findings as lines of text."""

from collections.abc import Sequence

from ubend.core.i18n import _, ngettext
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.dataset.dataset import Dataset
from ubend.doctor.accepted import leave_out_accepted
from ubend.doctor.checks import QUICK, run_checks
from ubend.doctor.finding import Finding, Grade, count_grades
from ubend.doctor.inspection import Inspection

_LISTED = 5  # findings of one check that are printed
_NAMED = 3  # files of a finding


def report_quick_checks(reporter: Reporter, data: Dataset, settings: Settings) -> None:
    """Run the checks that need no pixels, and report how much they found; accepted findings do not count.

    Raises:
        SettingError: the file of accepted findings is damaged.
    """
    inspection = Inspection(data, settings)
    findings, _accepted = leave_out_accepted(run_checks(inspection, QUICK), inspection)
    counts = count_grades(findings)
    if counts["error"] or counts["warning"]:
        reporter.report(
            _("note: quick checks of the data: {counts}; `ubend doctor` with the same folder names them").format(
                counts=describe_counts(findings)
            )
        )


def describe_findings(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding; of one check the first few, and how many more there are."""
    lines, shown = [], dict[tuple[str, Grade], int]()
    for finding in findings:
        kind = finding.check, finding.grade
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= _LISTED:
            names = name_files(finding)
            lines.append(
                _("{grade}: {check}: {message}; {repair}{files}").format(
                    grade=name_grade(finding.grade),
                    check=finding.check,
                    message=finding.message,
                    repair=finding.repair,
                    files=f" [{names}]" if names else "",
                )
            )
    for (check, grade), count in shown.items():
        if count > _LISTED:
            lines.append(
                _("{grade}: {check}: {count} more; --json FILE lists all").format(
                    grade=name_grade(grade), check=check, count=count - _LISTED
                )
            )
    return lines


def name_grade(grade: Grade) -> str:
    """A grade in the chosen language."""
    return {"error": _("error"), "warning": _("warning"), "note": _("note")}[grade]


def name_files(finding: Finding) -> str:
    """The first files of a finding, and how many more there are; empty where it concerns none."""
    names = ", ".join(map(str, finding.files[:_NAMED]))
    more = len(finding.files) - _NAMED
    return names + _(" and {count} more").format(count=more) if more > 0 else names


def describe_counts(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 note`; empty without findings."""
    counts = count_grades(findings)
    texts = (
        ngettext("{count} error", "{count} errors", counts["error"]).format(count=counts["error"]),
        ngettext("{count} warning", "{count} warnings", counts["warning"]).format(count=counts["warning"]),
        ngettext("{count} note", "{count} notes", counts["note"]).format(count=counts["note"]),
    )
    return ", ".join(text for text, count in zip(texts, counts.values(), strict=True) if count)
