"""What can be known to be wrong before the start, for every kind of recipe that is registered."""

from collections.abc import Callable

from flows.checks.finetune import finetune_preflight
from flows.checks.inputs import Ready, preflight
from flows.checks.ternary import ternary_preflight
from flows.recipes.kinds import FINETUNE, QUANTIZE, TERNARY

CHECKS: dict[str, Callable[..., Ready]] = {
    QUANTIZE.name: preflight,
    TERNARY.name: ternary_preflight,
    FINETUNE.name: finetune_preflight,
}
