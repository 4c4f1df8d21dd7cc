"""What became of each step of a quantization, in words."""

from collections.abc import Mapping

from flows.recipes.quantize import Recipe
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.report import BlockReport
from normtweak_core.tweak.report import FinalTuneReport

NO_NORMS = "no norm of this model has a weight"


def scheme(recipe: Recipe) -> str:
    """Return what was made of the model, such as "in 4 bits by GPTQ"."""
    config = recipe.quantization
    methods = {"gptq": "by GPTQ", "rtn": "by round to nearest"}
    method = methods[config.method] if recipe.base is None else f"with the codes of {recipe.base}"
    groups = f"groups of {config.group_size}" if config.group_size else "one scale per row"
    grid = "symmetric" if config.symmetric else "asymmetric"
    return f"in {config.in_words} {method} ({grid}, {groups}){_activations(config)}"


def _activations(config: QuantizationConfig) -> str:
    """Return what the linears read, where that is rounded."""
    if config.activation_bits is None:
        return ""
    how = f"smoothed, alpha {config.smoothing.alpha:g}" if config.smoothing.enabled else "as it is"
    return f", reading {config.activation_bits}-bit activations ({how}): {config.scheme}"


def activation_tags(config: QuantizationConfig) -> dict[str, str]:
    """Return the tags of a version whose linears read rounded activations; none of another."""
    if config.activation_bits is None:
        return {}
    return {"activation_bits": str(config.activation_bits), "scheme": config.scheme}


def codes_in_words(origin: Mapping[str, str]) -> str:
    """Return where codes come from that another tool has made."""
    revision = f"@{origin['base_revision']}" if origin["base_revision"] else ""
    return (
        f"those of {origin['base']}{revision}, bit for bit (quantized by {origin['quantized_by']}, "
        f"licence {origin['base_license']})"
    )


def effort_in_words(recipe: Recipe) -> str:
    """Return the effort, and what the recipe sets beside it."""
    changed = recipe.beside_effort()
    return recipe.effort + (f", but for {', '.join(changed)}" if changed else "")


def training_in_words(blocks: list[BlockReport]) -> str:
    """Return in how many blocks the training was kept."""
    found = [block.training for block in blocks if block.training is not None]
    if not found:
        return "off"
    kept = sum(training.accepted for training in found)
    return f"kept in {kept} of {len(found)} blocks"


def tweaks_in_words(blocks: list[BlockReport]) -> str:
    """Return in how many blocks the norm tweak was kept."""
    tweaks = {block.block: block.tweak for block in blocks if block.tweak}
    if not tweaks:
        return "off"
    if not any(tweak.trained for tweak in tweaks.values()):
        return f"nothing to train: {NO_NORMS}"
    back = [str(index) for index, tweak in tweaks.items() if tweak.outcome == "rolled back"]
    kept = sum(tweak.accepted for tweak in tweaks.values())
    where = f"; rolled back in {', '.join(back)}" if back else ""
    return f"kept in {kept} of {len(tweaks)} blocks{where}"


def final_tune_in_words(final_tune: FinalTuneReport | None) -> str:
    """Return what the final tune brought."""
    if final_tune is None:
        return "off"
    if not final_tune.trained:
        return f"nothing to train: {NO_NORMS}"
    return (
        f"{final_tune.outcome}: held-out divergence {final_tune.held_out_before:.4g} → "
        f"{final_tune.held_out_after:.4g} nats per token"
    )


def experts_in_words(blocks: list[BlockReport]) -> str:
    """Return how the experts of all blocks got their statistics."""
    experts = [one for block in blocks for one in block.experts]
    few = sum(one.few for one in experts)
    fewest = min(one.tokens for one in experts)
    named = f"{few} with few tokens, named in the notes" if few else "all from their own tokens"
    return f"{len(experts)}, the least used with {fewest} calibration tokens; {named}"
