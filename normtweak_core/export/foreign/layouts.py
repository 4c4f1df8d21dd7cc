"""What config.json says of a checkpoint that another tool has quantized; no torch.

Read are layouts of integer codes with a scale and a zero point for each row and group:

* ``gptq``: GPTQModel, AutoGPTQ, AutoRound (``auto_gptq`` and its own ``auto_round``);
* ``awq``: AutoAWQ's gemm, GPTQModel, AutoRound (``auto_awq``);
* ``compressed-tensors``: llm-compressor's pack-quantized.

Our own exports are among them. Widths and groups of each linear follow from shapes (`linears`), so
that tools may say in whichever way which layer has which; here is what no shape tells.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import read_config
from normtweak_core.paths import shown

Layout = Literal["gptq", "awq", "compressed-tensors"]
# In which recipes and messages name what is read.
READ = "gptq, awq, auto-round, or compressed-tensors in the format pack-quantized"


@dataclass(frozen=True)
class Packing:
    """What config.json says of all packed linears together."""

    method: str
    layout: Layout
    symmetric: bool  # of compressed-tensors each linear tells
    minus_one: bool  # zero points are stored less one, as words
    bits: int | None  # None: not one number for all


def read_packing(folder: Path) -> Packing:
    """Return what the config.json of a quantized model says.

    Raises:
        InputError: It is quantized in a way that is not read here, or not at all.
    """
    config = read_config(folder).get("quantization_config")
    if not config:
        raise _refused(folder, "not quantized, or does not say how (quantization_config)")
    method = config.get("quant_method", "an unnamed method")
    if method == "gptq":
        return _gptq(folder, config)
    if method == "awq":
        _require(folder, config, "version", {"gemm"}, "gemm")
        symmetric = not config.get("zero_point", True)
        return Packing(method, "awq", symmetric, False, _bits(config))
    if method == "auto-round":
        return _auto_round(folder, config)
    if method == "compressed-tensors":
        return _compressed(folder, config)
    raise _refused(folder, f"quantized with {method}")


def _gptq(folder: Path, config: dict[str, Any]) -> Packing:
    form = config.get("checkpoint_format", config.get("format", "gptq"))
    if form not in ("gptq", "gptq_v2"):
        raise _refused(folder, f"gptq in the layout {form}")
    _require(folder, config, "pack_dtype", {"int32"}, "int32")
    overrides = (config.get("dynamic") or {}).values()
    symmetric = _all_symmetric(config, overrides)
    bits = _bits(config) if not overrides else None
    return Packing("gptq", "gptq", symmetric, form == "gptq", bits)


def _auto_round(folder: Path, config: dict[str, Any]) -> Packing:
    _require(folder, config, "data_type", {"int"}, "int")
    if (config.get("act_bits") or 16) <= 8:
        raise _refused(folder, f"auto-round with activations of {config['act_bits']} bits")
    form = config.get("packing_format", "auto_round:exllamav2")
    overrides = (config.get("extra_config") or {}).values()
    symmetric = _all_symmetric(config, overrides)
    bits = _bits(config) if not any("bits" in one for one in overrides) else None
    if "awq" in form:
        return Packing("auto-round", "awq", symmetric, False, bits)
    # GPTQModel's files of this name have zero points as they are, AutoGPTQ's have them less one.
    minus_one = "gptq" in form and "gptqmodel" not in form
    return Packing("auto-round", "gptq", symmetric, minus_one, bits)


def _compressed(folder: Path, config: dict[str, Any]) -> Packing:
    groups = (config.get("config_groups") or {}).values()
    widths = set()
    for group in groups:
        form = group.get("format") or config.get("format")
        weights = group.get("weights") or {}
        if form != "pack-quantized" or weights.get("type", "int") != "int":
            raise _refused(folder, f"compressed-tensors in the format {form}")
        for what in ("input_activations", "output_activations"):
            if group.get(what):
                raise _refused(folder, f"compressed-tensors with {what}, {shown(group[what])}")
        if weights.get("strategy") not in ("group", "channel"):
            raise _refused(folder, f"compressed-tensors with scales by {weights.get('strategy')}")
        widths.add(weights.get("num_bits"))
    if config.get("kv_cache_scheme"):
        raise _refused(folder, "compressed-tensors with a quantized cache (kv_cache_scheme)")
    if config.get("transform_config"):
        raise _refused(folder, "compressed-tensors with transforms (transform_config)")
    bits = widths.pop() if len(widths) == 1 else None
    return Packing("compressed-tensors", "compressed-tensors", False, False, bits)


def _all_symmetric(config: dict[str, Any], overrides: Iterable[dict[str, Any]]) -> bool:
    return config.get("sym", True) and all(one.get("sym", True) for one in overrides)


def _bits(config: dict[str, Any]) -> int | None:
    found = config.get("bits", config.get("w_bit"))
    return found if isinstance(found, int) else None


def _require(
    folder: Path, config: dict[str, Any], key: str, wanted: set[str], default: str
) -> None:
    if (found := config.get(key, default)) not in wanted:
        raise _refused(folder, f"{config['quant_method']} with {key} {found}")


def _refused(folder: Path, found: str) -> InputError:
    return InputError(
        f"must be a checkpoint with codes on grids ({READ})",
        key="base",
        found=f"{folder} is {found}",
        remedy="give another export of the model",
    )
