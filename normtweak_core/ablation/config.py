"""What an ablation varies: seven studies, each of one factor, and how often it is repeated.

Every value of a study stands for a few keys of a recipe; all other keys stay as they are in the
base. Nothing here imports torch.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from normtweak_core.calibration.config import CalibrationConfig

Study = Literal["calibration", "loss", "target", "stage", "schedule", "iterations", "bits"]
Value = int | str

# Studies whose values are those of one key of the recipe, as they stand there.
KEYS = {
    "loss": "norm_tweak.loss",
    "target": "norm_tweak.target",
    "schedule": "norm_tweak.schedule",
    "iterations": "norm_tweak.iterations",
}
ROUNDED = {
    "quantization.method": "rtn",
    "quantization.propagation.alpha": 0.0,
    "norm_tweak.enabled": False,
    "block_training.enabled": False,
    "final_tune.enabled": False,
}
SOLVED = ROUNDED | {"quantization.method": "gptq"}
# Each stage with all before it; without a key for the share of propagation, that of the base holds.
PROPAGATED = {key: on for key, on in SOLVED.items() if key != "quantization.propagation.alpha"}
STAGES: dict[str, dict[str, Any]] = {
    "rtn": ROUNDED,
    "gptq": SOLVED,
    "propagation": PROPAGATED,
    "norm_tweak": PROPAGATED | {"norm_tweak.enabled": True},
    # Blocks are trained before it where those of the base are.
    "final_tune": {key: on for key, on in PROPAGATED.items() if key != "block_training.enabled"}
    | {"norm_tweak.enabled": True, "final_tune.enabled": True},
}
# Fewer than four levels are those of a symmetric grid of 2 bits.
FEW_LEVELS = {"ternary": "ternary", 1: "binary"}


class StudiesConfig(BaseModel, frozen=True, extra="forbid"):
    """The values of each factor; an empty list leaves a study out."""

    calibration: list[Literal["restricted", "unrestricted", "text", "random"]] = Field(
        ["restricted", "unrestricted", "text", "random"],
        description="Written by the model from a first token of its languages, or from any; text; "
        "random ids.",
    )
    loss: list[Literal["channel", "mse", "kl"]] = Field(
        ["channel", "mse", "kl"], description="norm_tweak.loss."
    )
    target: list[Literal["local", "global"]] = Field(
        ["local", "global"], description="norm_tweak.target."
    )
    stage: list[Literal["rtn", "gptq", "propagation", "norm_tweak", "final_tune"]] = Field(
        ["rtn", "gptq", "propagation", "norm_tweak", "final_tune"],
        description="The last stage that runs; each includes those before it.",
    )
    schedule: list[Literal["constant", "step", "linear", "cosine", "exponential"]] = Field(
        ["constant", "step", "linear", "cosine", "exponential"],
        description="norm_tweak.schedule.",
    )
    iterations: list[int] = Field([1, 2, 4, 8], description="norm_tweak.iterations, 1 to 64.")
    bits: list[Literal[8, 4, 3, 2, "ternary", 1]] = Field(
        [8, 4, 3, 2, "ternary", 1], description="quantization.bits, or fewer levels than 2 bits."
    )

    @model_validator(mode="after")
    def _every_study_compares_values(self) -> "StudiesConfig":
        for study, values in self.chosen().items():
            key = f"ablation.studies.{study}"
            if len(values) == 1:
                raise ValueError(
                    f"{key} needs two values to compare; found {values}: add one, or leave the "
                    "study out by []"
                )
            if len(set(values)) < len(values):
                raise ValueError(
                    f"{key} must hold every value once; found {values}: remove the copies"
                )
        if odd := [value for value in self.iterations if not 1 <= value <= 64]:
            raise ValueError(
                f"ablation.studies.iterations may hold numbers from 1 to 64; found {odd[0]}: "
                "leave it out"
            )
        return self

    def chosen(self) -> dict[str, list[Value]]:
        """Return the values of every study that is not left out."""
        return {name: values for name in STUDIES if (values := getattr(self, name))}


STUDIES = tuple(StudiesConfig.model_fields)


class SeedsConfig(BaseModel, frozen=True, extra="forbid"):
    """How many seeds a study is repeated with, from that of the recipe upwards."""

    calibration: int = Field(3, ge=1, le=32, description="Of the study of calibration sources.")
    loss: int = Field(3, ge=1, le=32, description="Of the study of losses.")
    target: int = Field(1, ge=1, le=32, description="Of the study of targets.")
    stage: int = Field(3, ge=1, le=32, description="Of the study of stages.")
    schedule: int = Field(1, ge=1, le=32, description="Of the study of schedules.")
    iterations: int = Field(1, ge=1, le=32, description="Of the study of iterations.")
    bits: int = Field(1, ge=1, le=32, description="Of the study of widths.")


class AblationConfig(BaseModel, frozen=True, extra="forbid"):
    """The studies of one ablation."""

    studies: StudiesConfig = StudiesConfig()
    seeds: SeedsConfig = SeedsConfig()
    text: str | None = Field(
        None,
        description="Text of the calibration study; null: calibration.path where the base has one, "
        "else what a reference model was trained on.",
    )

    @model_validator(mode="after")
    def _keys_where_read(self) -> "AblationConfig":
        if not self.studies.chosen():
            raise ValueError(
                "ablation.studies must hold a study with two values or more; found none: leave out "
                "fewer"
            )
        for name, field in SeedsConfig.model_fields.items():
            count = getattr(self.seeds, name)
            if count != field.default and name not in self.studies.chosen():
                raise ValueError(
                    f"ablation.seeds.{name} is only read with values in ablation.studies.{name}; "
                    f"found {count} and no values: remove it"
                )
        if self.text is not None and "text" not in self.studies.calibration:
            raise ValueError(
                "ablation.text is only read with text in ablation.studies.calibration; found "
                f"{self.studies.calibration}: remove ablation.text or add text"
            )
        return self


def changes_of(study: str, value: Value, base: CalibrationConfig, text: str) -> dict[str, Any]:
    """Return the keys of a recipe that a value of a study stands for.

    Args:
        study: One of `STUDIES`.
        value: One of its values.
        base: Calibration of the base, whose languages are those of restricted text.
        text: Path of the text to calibrate with; read for the value ``text`` only.
    """
    if study in KEYS:
        return {KEYS[study]: value}
    if study == "stage":
        return STAGES[value]
    if study == "bits":
        if value in FEW_LEVELS:
            levels = FEW_LEVELS[value]
            symmetric = {"quantization.bits": 2, "quantization.symmetric": True}
            return symmetric | {"quantization.levels": levels}
        return {"quantization.bits": value, "quantization.levels": "full"}
    calibration: dict[str, Any] = {"source": value, "path": None, "languages": "auto"}
    if value in ("restricted", "unrestricted"):
        restricted = "auto" if base.languages is None else base.languages
        calibration |= {
            "source": "generated",
            "languages": restricted if value == "restricted" else None,
        }
    elif value == "text":
        calibration["path"] = text
    return {f"calibration.{key}": one for key, one in calibration.items()}


NAMES = {
    "restricted": "generated, its languages",
    "unrestricted": "generated, any first token",
    "text": "text",
    "random": "random ids",
    "rtn": "RTN",
    "gptq": "GPTQ",
    "propagation": "+ propagation",
    "norm_tweak": "+ norm tweaking",
    "final_tune": "+ final tune",
}


def value_name(study: str, value: Value) -> str:
    """Return what people call a value of a study."""
    if study == "bits" and isinstance(value, int):
        return "1 bit" if value == 1 else f"{value} bits"
    return NAMES.get(str(value), str(value))


TITLES = {
    "calibration": "calibration source",
    "loss": "loss of the norm tweak",
    "target": "target of the norm tweak",
    "stage": "stage",
    "schedule": "learning rate over depth",
    "iterations": "iterations of the norm tweak",
    "bits": "width",
}
