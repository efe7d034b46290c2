"""Findings as text: names, evidence, and lines for the terminal."""

from collections.abc import Sequence

from ubend.core.i18n import _, later, ngettext, now
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.dataset.dataset import Dataset
from ubend.doctor.accepted import leave_out_accepted
from ubend.doctor.checks import QUICK, run_checks
from ubend.doctor.finding import Finding, Grade, count_grades, sort_findings
from ubend.doctor.inspection import Inspection

_LISTED = 5  # findings of one check that are shown
_NAMED = 3  # files of a finding
# The names are data (JSON has them in English); here they are marked for translation.
CHECK_NAMES = (
    later("image without mask"),
    later("mask without image"),
    later("double name"),
    later("unreadable file"),
    later("unreadable folder"),
    later("size mismatch"),
    later("odd depth"),
    later("odd values"),
    later("odd channels"),
    later("split"),
    later("value off by one"),
    later("near colour"),
    later("resampled mask"),
    later("JPEG mask"),
    later("image as mask"),
    later("shared mask"),
    later("duplicate image"),
    later("contradicting masks"),
    later("leaked image"),
    later("near-duplicate image"),
    later("leaked near-duplicate"),
    later("leaked group"),
    later("shifted mask"),
    later("flipped mask"),
    later("inverted mask"),
    later("unfitting mask"),
    later("unlike prediction"),
    later("empty mask"),
    later("full mask"),
    later("missing objects"),
    later("absent class"),
    later("specks"),
    later("pin-holes"),
    later("constant image"),
    later("dark image"),
    later("light image"),
    later("blurred image"),
    later("turned image"),
    later("odd aspect"),
    later("class missing in training"),
    later("class without score"),
    later("rare class"),
    later("narrow objects"),
    later("domain shift"),
)
MEASURE_NAMES = (  # of evidence, except p, dx and dy
    later("class"),
    later("contrast"),
    later("distance"),
    later("effect"),
    later("fit"),
    later("flip"),
    later("gain"),
    later("images"),
    later("masks"),
    later("mean"),
    later("noise"),
    later("score"),
    later("share"),
    later("test images"),
    later("threshold"),
    later("train images"),
    later("usual"),
    later("val images"),
    later("values"),
)


def report_quick_checks(reporter: Reporter, data: Dataset, settings: Settings) -> list[Finding]:
    """Run the checks that need no pixels, report how much they found, and return it, errors first.

    Accepted findings are left out.

    Raises:
        SettingError: the file of accepted findings is damaged.
    """
    inspection = Inspection(data, settings)
    findings, _accepted = leave_out_accepted(run_checks(inspection, QUICK), inspection)
    findings = sort_findings(findings)
    counts = count_grades(findings)
    if counts["error"] or counts["warning"]:
        reporter.report(
            _("note: quick checks of the data: {counts}; `ubend doctor` with the same folder names them").format(
                counts=describe_counts(findings)
            )
        )
    return findings


def describe_findings(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding; of one check the first few, and how many more there are."""
    listed, left = limit_findings(findings)
    lines = []
    for finding in listed:
        names = name_files(finding)
        lines.append(
            _("{grade}: {check}: {message}; {repair}{files}").format(
                grade=name_grade(finding.grade),
                check=name_check(finding.check),
                message=finding.message,
                repair=finding.repair,
                files=f" [{names}]" if names else "",
            )
        )
    for (check, grade), count in left.items():
        lines.append(
            _("{grade}: {check}: {count} more; --json FILE lists all").format(
                grade=name_grade(grade), check=name_check(check), count=count
            )
        )
    return lines


def limit_findings(findings: Sequence[Finding]) -> tuple[list[Finding], dict[tuple[str, Grade], int]]:
    """The first few findings of each check, and (check, grade) -> how many more there are."""
    listed, counts = [], dict[tuple[str, Grade], int]()
    for finding in findings:
        kind = finding.check, finding.grade
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= _LISTED:
            listed.append(finding)
    return listed, {kind: count - _LISTED for kind, count in counts.items() if count > _LISTED}


def name_check(check: str) -> str:
    """A check of `CHECK_NAMES` in the chosen language."""
    return now(check)


def describe_evidence(finding: Finding) -> str:
    """The measures of a finding: `share 0.0012, threshold 0.01`."""
    values = (
        (now(name), f"{value:.3g}" if isinstance(value, float) else value) for name, value in finding.evidence.items()
    )
    return ", ".join(f"{name} {value}" for name, value in values)


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
