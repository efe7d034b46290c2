"""The dataset doctor: what is wrong with a data set, before it is trained on."""

from pathlib import Path

from ubend.core.device import pick_device, set_up
from ubend.core.errors import DataError
from ubend.core.files import default_cache
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.doctor.checks import QUICK, THOROUGH, run_checks
from ubend.doctor.finding import Finding, count_grades, sort_findings, write_findings
from ubend.doctor.reading import inspect_folder
from ubend.doctor.report import describe_counts, describe_findings
from ubend.tasks.data import report_dataset
from ubend.tasks.doctor_page import write_page


def examine_data(
    settings: Settings,
    *,
    json_path: Path | None = None,
    html_path: Path | None = None,
    strict: bool = False,
    reporter: Reporter | None = None,
) -> list[Finding]:
    """Read a folder as `fit` does, run all checks, and report what they find. The folder is not changed.

    Pairs that cannot be used are findings, and the checks look at the rest.

    Args:
        settings: only the section `data` and the seed are used.
        json_path: a file for all findings, as JSON.
        html_path: a file for all findings with thumbnails, as one HTML page.
        strict: warnings fail too.
    Returns:
        The findings, errors first.
    Raises:
        DataError: there are errors, or with `strict` warnings; after all was reported.
        OutputError: the JSON file, the page or the cache cannot be written.
    """
    set_up(pick_device("cpu"), False)
    device = pick_device(settings.device).type
    with reporter or Reporter() as log:
        inspection, findings = inspect_folder(settings, device, default_cache(), log)
        if inspection is not None:
            report_dataset(log, inspection.data)
            findings = [*findings, *run_checks(inspection, (*QUICK, *THOROUGH))]
        findings = sort_findings(findings)
        for line in describe_findings(findings):
            log.report(line)
        if json_path is not None:
            write_findings(json_path, findings)
        folder = settings.data.folder or settings.data.images or ""
        if html_path is not None:
            write_page(html_path, str(folder), findings, inspection)
        counts = count_grades(findings)
        log.report(describe_counts(findings) if findings else _("no findings"))
    if counts["error"] or (strict and counts["warning"]):
        raise DataError(
            _("{folder}: {counts}; repair the data, or train without what cannot be used (--skip-bad)").format(
                folder=folder, counts=describe_counts(findings)
            ),
            path=folder,
        )
    return findings
