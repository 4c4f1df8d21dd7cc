"""What can be known to be wrong with an evaluation before the start."""

from pathlib import Path

from flows.checks.given_texts import check_items, read_text
from flows.checks.written_places import check_result_file, check_state_root
from flows.recipes.evaluation import OPTIONS, EvaluationRequest
from normtweak_core.errors import keys_called


def check_request(request: EvaluationRequest, root: Path, result: Path | None) -> None:
    """Accept a request whose files are there, before anything heavy is imported.

    Raises:
        InputError: A file is missing, empty or malformed, or a folder cannot be written.
    """
    if result is not None:
        check_result_file(result)
    check_state_root(root)
    with keys_called(OPTIONS):
        check_items(request.evaluation)
        if request.evaluation.perplexity.path is not None:
            read_text(request.evaluation.perplexity.path, "evaluation.perplexity.path")
