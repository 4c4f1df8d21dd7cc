"""What can be known to be wrong before the start, for every kind of recipe that is registered."""

from collections.abc import Callable

from flows.finetune_preflight import finetune_preflight
from flows.preflight import Ready, preflight
from flows.recipe_kinds import FINETUNE, QUANTIZE, TERNARY
from flows.ternary_preflight import ternary_preflight

CHECKS: dict[str, Callable[..., Ready]] = {
    QUANTIZE.name: preflight,
    TERNARY.name: ternary_preflight,
    FINETUNE.name: finetune_preflight,
}
