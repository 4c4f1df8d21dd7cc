"""What can be known to be wrong with a polynomial study before the start."""

from pathlib import Path

from flows.checks.services import check_services
from flows.checks.written_places import check_result_file, check_state_root
from flows.recipes.polynomial import PolynomialRecipe, study_device


def preflight(recipe: PolynomialRecipe, root: Path, result: Path | None = None) -> None:
    """Accept a study that this machine can carry out.

    Raises:
        InputError: A folder cannot be written, Prefect's server does not answer, or there is no
            such device.
    """
    if result is not None:
        check_result_file(result)
    check_state_root(root)
    check_services(root, registry=False)
    study_device(recipe)
