"""The dataset doctor: what is wrong with a data set, before it is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ubend.core.device import pick_device, set_up
from ubend.core.errors import DataError, SettingError
from ubend.core.files import default_cache, refuse_existing
from ubend.core.i18n import _, ngettext
from ubend.core.progress import Reporter
from ubend.core.settings import Settings
from ubend.doctor.accepted import FILE_NAME, accept, accepted_path, leave_out_accepted, read_accepted
from ubend.doctor.checks import QUICK, THOROUGH, run_checks
from ubend.doctor.finding import Finding, count_grades, sort_findings, write_findings
from ubend.doctor.finding_text import describe_counts, describe_findings
from ubend.doctor.reading import inspect_folder
from ubend.tasks.data import report_dataset
from ubend.tasks.doctor_fix import Examination, refuse_unfit, write_repaired
from ubend.tasks.doctor_page import write_page

if TYPE_CHECKING:
    from ubend.tasks.doctor_model import DoctorModel


def examine_data(
    settings: Settings,
    *,
    json_path: Path | None = None,
    html_path: Path | None = None,
    strict: bool = False,
    accepted: Sequence[str] = (),
    fix: Path | None = None,
    model: Path | None = None,
    reporter: Reporter | None = None,
) -> list[Finding]:
    """Read a folder as `fit` does, run all checks, and report what they find.

    Pairs that cannot be used are findings, and the checks look at the rest. The folder is not changed, except for the
    accepted findings in its `data.toml`.

    Args:
        settings: only the section `data` and the seed are used.
        json_path: a file for all findings, as JSON.
        html_path: a file for all findings with thumbnails, as one HTML page.
        strict: warnings fail too.
        accepted: findings to accept before the rest is reported, each `CHECK` or `CHECK:FILE`, see `accept`.
        fix: a folder to create with a repaired copy. The findings that are left in the copy are reported too, and
            they alone decide whether this fails.
        model: a run folder or a model file, whose predictions are compared with the masks too; None: none.
    Returns:
        The findings, errors first; with `fix`, those that are left in the copy.
    Raises:
        DataError: there are errors, or with `strict` warnings; after all was reported. See also `write_repaired`. Or
            the model does not fit the folder.
        SettingError: a finding to accept does not exist, or the file of accepted findings is damaged.
        ModelFileError: the model cannot be read.
        OutputError: the JSON file or the page exists already; or these, the cache, the accepted findings or the copy
            cannot be written.
    """
    for option, path in {"--json": json_path, "--html": html_path}.items():
        refuse_existing([path] if path is not None else [], option=option)
    set_up(pick_device("cpu"), False)
    device = pick_device(settings.device).type
    read_accepted(accepted_path(settings))  # a damaged file is refused before anything is read
    if fix is not None:
        refuse_unfit(settings, fix)
    doctor_model = None
    if model is not None:
        from ubend.tasks.doctor_model import DoctorModel

        doctor_model = DoctorModel(model, settings.device)
    with reporter or Reporter() as log:
        examination = _examine(settings, device, accepted, log, doctor_model)
        _report(examination, log)
        if json_path is not None:
            write_findings(json_path, examination.findings)
        folder = str(settings.data.folder or settings.data.images or "")
        if html_path is not None:
            write_page(html_path, folder, examination.findings, examination.inspection)
        findings = examination.findings
        if fix is not None:
            findings = write_repaired(
                settings, fix, examination, lambda changed: _examine(changed, device, (), log, doctor_model), log
            )
            folder = str(fix)
    counts = count_grades(findings)
    if counts["error"] or (strict and counts["warning"]):
        line = _("{folder}: {counts}; repair the data, or train without what cannot be used (--skip-bad)")
        if examination.inspection is None:
            line = _("{folder}: {counts}; nothing can be read before this is repaired")
        elif not counts["error"]:
            line = _("{folder}: {counts}; repair the data, or accept what is as it should be (--accept CHECK)")
        raise DataError(line.format(folder=folder, counts=describe_counts(findings)), path=folder)
    return findings


def _examine(
    settings: Settings, device: str, accepted: Sequence[str], log: Reporter, model: "DoctorModel | None"
) -> Examination:
    """Read the folder and run all checks, without those that are accepted."""
    inspection, problems = inspect_folder(settings, device, default_cache(), log)
    if inspection is None:
        if accepted:
            _refuse_problems(accepted, problems)
        return Examination(None, sort_findings(problems), 0)
    findings = run_checks(inspection, (*QUICK, *THOROUGH))
    if model is not None:
        findings = _add_new(findings, model.check(inspection, settings, log))
    if accepted:
        _refuse_problems(
            accepted, [problem for problem in problems if problem.check not in {finding.check for finding in findings}]
        )
        taken = accept(accepted, findings, inspection)
        line = ngettext("{count} finding is accepted in {file}", "{count} findings are accepted in {file}", len(taken))
        log.report(line.format(count=len(taken), file=FILE_NAME))
    findings, quiet = leave_out_accepted(findings, inspection)
    return Examination(inspection, sort_findings([*problems, *findings]), quiet)


def _add_new(findings: Sequence[Finding], by_model: Sequence[Finding]) -> list[Finding]:
    """Both, without findings of a check about files that the model's findings of this check name too."""
    named = {(finding.check, finding.files) for finding in by_model}
    return [*(finding for finding in findings if (finding.check, finding.files) not in named), *by_model]


def _refuse_problems(accepted: Sequence[str], problems: Sequence[Finding]) -> None:
    """Fail if findings to accept are of files that cannot be read: `fit` would still refuse them.

    Raises:
        SettingError: they are.
    """
    checks = {finding.check for finding in problems}
    for text in accepted:
        if text.partition(":")[0].strip() in checks:
            line = _("--accept {text}: what cannot be read cannot be accepted; repair it, or train with --skip-bad")
            raise SettingError(line.format(text=text), key="--accept")


def _report(examination: Examination, log: Reporter) -> None:
    if examination.inspection is not None:
        report_dataset(log, examination.inspection.data)
    for line in describe_findings(examination.findings):
        log.report(line)
    if examination.accepted:
        line = ngettext(
            "{count} accepted finding is not shown; it is listed in {file}",
            "{count} accepted findings are not shown; they are listed in {file}",
            examination.accepted,
        )
        log.report(line.format(count=examination.accepted, file=FILE_NAME))
    log.report(describe_counts(examination.findings) if examination.findings else _("no findings"))
