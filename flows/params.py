"""The recipe: everything that decides what a run produces, as one pydantic model."""

import difflib
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.export.config import ExportConfig
from normtweak_core.model.config import ModelConfig
from normtweak_core.quantize.config import QuantizationConfig
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class GateConfig(BaseModel, frozen=True, extra="forbid"):
    """Thresholds before an alias moves. Not built yet: every key must stay null."""

    max_perplexity_ratio: None = None
    max_kl: None = None
    min_top1_agreement: None = None


class RegistryConfig(BaseModel, frozen=True, extra="forbid"):
    """The registered version."""

    alias: str = Field("candidate", pattern=NAME_PATTERN, description="Alias the version takes.")
    promote_to: Literal["champion"] | None = Field(
        "champion", description="Alias that passing the gate will earn, once the gate is built."
    )


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """One run of the quantization flow."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the registered model.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    on_problem: Literal["warn", "fail"] = Field(
        "warn", description="Damping raised, tweak rolled back, layer left float: warn or fail."
    )
    model: ModelConfig = ModelConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    norm_tweak: NormTweakConfig = NormTweakConfig()
    final_tune: FinalTuneConfig = FinalTuneConfig()
    ternary: None = Field(None, description="Not built yet: must stay null.")
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    export: ExportConfig = ExportConfig()
    registry: RegistryConfig = RegistryConfig()


# Keys of the contract whose feature does not exist yet, and the one value they may hold.
NOT_BUILT: dict[str, Any] = {
    "quantization.activation_bits": None,
    "gate.max_perplexity_ratio": None,
    "gate.max_kl": None,
    "gate.min_top1_agreement": None,
    "ternary": None,
    "finetune": None,
    "evaluation.tasks": [],
    "evaluation.data": None,
}
FORMATS_TO_COME = ("bitnet", "gguf")


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Return the recipe of a YAML file with ``KEY=VALUE`` overrides applied.

    Raises:
        InputError: The file is missing or is not YAML, a key is unknown or not built yet, a value
            is of the wrong type or out of range.
    """
    if not path.is_file():
        raise InputError(f"the recipe must be a YAML file; {path} does not exist")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" (line {place.line + 1})" if place else ""
        raise InputError(f"the recipe must be YAML; {path} cannot be parsed{where}") from error
    if not isinstance(data, dict):
        raise InputError(f"the recipe must map keys to values; {path} holds {type(data).__name__}")
    for override in overrides or []:
        _apply_override(data, override)
    return parse_recipe(data)


def parse_recipe(data: dict[str, Any]) -> Recipe:
    """Return the validated recipe of plain data.

    Raises:
        InputError: As `load_recipe`.
    """
    refuse_unbuilt(data)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(" ".join(_sentence(detail) for detail in error.errors()[:2])) from error


def refuse_unbuilt(data: dict[str, Any]) -> None:
    """Refuse, by name, keys whose feature does not exist yet.

    Raises:
        InputError: Such a key holds anything but its null default.
    """
    for key, default in NOT_BUILT.items():
        value = _lookup(data, key, default)
        if value != default:
            raise InputError(
                f"{key} is not built yet; found {value!r}: remove it or leave it at "
                f"{'null' if default is None else default}"
            )
    chosen = _lookup(data, "export.format", None)
    if chosen in FORMATS_TO_COME:
        raise InputError(
            f"export.format {chosen} is not built yet: use auto, compressed-tensors or gptq"
        )


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set takes KEY=VALUE, such as quantization.bits=3; found {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {key}: the value must be YAML; found {text!r}") from error
    *sections, leaf = key.split(".")
    place = data
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {key}: {section} holds a value, not a section")
        place = inner
    place[leaf] = value


def _lookup(data: Any, key: str, default: Any) -> Any:
    for part in key.split("."):
        if not isinstance(data, dict) or part not in data:
            return default
        data = data[part]
    return data


def _sentence(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    found = detail.get("input")
    if detail["type"] == "extra_forbidden":
        return _unknown_key(key)
    if detail["type"] == "missing":
        return f"{key} is required; the recipe has none: add it."
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"]).rstrip(".") + "."
    requirement = detail["msg"].removeprefix("Input ").removeprefix("should be ")
    return f"{key} must be {requirement}; found {found!r}."


def _unknown_key(key: str) -> str:
    *sections, leaf = key.split(".")
    model: type[BaseModel] = Recipe
    for section in sections:
        model = _section_model(model, section)
    known = list(model.model_fields)
    near = difflib.get_close_matches(leaf, known, n=1, cutoff=0.5)
    hint = f"did you mean {'.'.join([*sections, near[0]])}?" if near else "known: " + ", ".join(known)
    return f"{key} is not a recipe key; {hint}"


def _section_model(model: type[BaseModel], section: str) -> type[BaseModel]:
    annotation = model.model_fields[section].annotation
    candidates = [annotation, *get_args(annotation)]
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
