"""The checks, in the order of the report."""

from collections.abc import Callable

from ubend.doctor import balance, duplicates, images, mask_fit, masks, shift, values
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import Inspection

Check = Callable[[Inspection], list[Finding]]

# From what the scan and the store hold: at most a second for 1,000 images.
QUICK: tuple[Check, ...] = (
    values.check_label_values,
    duplicates.check_shared_masks,
    duplicates.check_exact_duplicates,
    duplicates.check_group_leaks,
    images.check_headers,
    images.check_exposure,
    masks.check_uniform_masks,
    masks.check_absent_class,
    balance.check_missing_classes,
    balance.check_balance,
    balance.check_scale,
)
# These look at pixels.
THOROUGH: tuple[Check, ...] = (
    duplicates.check_near_duplicates,
    mask_fit.check_mask_fit,
    images.check_blur,
    masks.check_fine_structure,
    shift.check_domain_shift,
)


def run_checks(inspection: Inspection, checks: tuple[Check, ...]) -> list[Finding]:
    """The findings of these checks."""
    return [finding for check in checks for finding in check(inspection)]
