"""The commands of the proof: each recipe of `conf/` in small, and tiny models in every pipeline."""

from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ITEMS = "tasks"  # a copy in the folder of the proof
TEXT = {"path": "text.txt", "max_tokens": 96}
RANDOM = {"source": "random", "samples": 8, "length": 32}
CALIBRATED = {"source": "text", "path": "text.txt", "samples": 8, "length": 16}
TASKS = {"tasks": ["piqa", "boolq"], "data": ITEMS, "max_items": 4}


@dataclass(frozen=True)
class Case:
    """A command, its recipe, and what is expected of it.

    Arguments and recipes may hold ``{NAME.key}``: that value of the result of the case NAME.
    """

    command: str
    recipe: dict | str | None = None  # as plain values, or the name of a file in conf/
    arguments: tuple[str, ...] = ()
    reads: frozenset[str] = field(default=frozenset())
    code: int = 0


def small(name: str, *settings: str, reads: str = "") -> Case:
    """Return a recipe of `conf/` with settings that make it small."""
    sets = tuple(word for one in settings for word in ("--set", one))
    command = {
        "quickstart": "quantize",
        "ablation-small": "ablate",
        "polynomial-small": "polynomial",
    }
    command |= {"ablation": "ablate", "polynomial": "polynomial"}
    return Case(
        command.get(name, name.partition("-")[0]), f"{name}.yaml", sets, frozenset(reads.split())
    )


def tiny(name: str, model: str = "llama", **sections) -> dict:
    """Return a recipe of quantize for a tiny model."""
    return {
        "name": name,
        "model": {"source": model},
        "calibration": RANDOM,
        "evaluation": {"perplexity": TEXT},
    } | sections


SHORT = ("calibration.samples=8", "calibration.length=32", "evaluation.perplexity.max_tokens=512")
STUDY = (
    "samples.train=512", "samples.test=32", "evaluations=2", "network.hidden_layers=2",
    "network.hidden_width=16", "float_training.epochs=2", "grid.epochs=1", "grid.batch=64",
    "lora.rank=2",
)  # fmt: skip
FEWER = {
    "calibration": "[restricted,text]",
    "loss": "[channel,mse]",
    "stage": "[rtn,gptq]",
    "schedule": "[constant,exponential]",
    "iterations": "[1,2]",
    "bits": "[8,1]",
}
TRAINED = ("data.samples=8", "data.length=32", "batch=2")

QUANTIZED = {
    "tiny rtn": tiny(
        "tiny-rtn",
        "neox",
        quantization={"method": "rtn", "bits": 4, "group_size": None, "symmetric": True},
        norm_tweak={"enabled": False},
        final_tune={"enabled": False},
    ),
    "tiny gptq format": tiny(
        "tiny-gptq-format",
        calibration=CALIBRATED,
        quantization={"bits": 3, "group_size": 32, "symmetric": True, "act_order": False},
        norm_tweak={"loss": "mse", "target": "local", "schedule": "cosine", "rollback": False},
        final_tune={"steps": 4},
        export={"format": "gptq"},
    ),
    "tiny levels": tiny(
        "tiny-levels",
        quantization={"group_size": 32, "symmetric": True, "levels": "ternary"},
        norm_tweak={"loss": "kl", "iterations": 2},
        final_tune={"steps": 4},
        evaluation={"perplexity": TEXT} | TASKS,
        gate={"max_kl": 1e-9, "max_accuracy_drop": {"piqa": 1.0}},
        export={"dtype": "float32"},
    ),
    "tiny 2 bits": tiny(
        "tiny-2-bits",
        calibration=CALIBRATED,
        quantization={"bits": 2, "group_size": 32},
        final_tune={"steps": 4},
    ),
    "tiny wide": tiny(
        "tiny-wide",
        "opt",
        quantization={
            "bits": 8,
            "group_size": None,
            "mse_grid": False,
            "propagation": {"alpha": 0.5},
        },
        final_tune={"enabled": False},
        export={"dtype": "bfloat16"},
        seed=3,
    ),
}
TERNARY = {
    "name": "tiny-ternary",
    "model": {"source": "llama"},
    "ternary": {
        "steps": 6, "batch": 2, "lr": 3e-3, "save_every": 3, "data": CALIBRATED,
    },
    "evaluation": {"perplexity": TEXT},
    "export": {"format": "bitnet"},
}  # fmt: skip
FINETUNE = {
    "name": "tiny-tuned",
    "model": {"source": "{tiny 2 bits.export_dir}"},
    "finetune": {"block_steps": 2, "steps": 6, "batch": 2, "save_every": 2, "data": RANDOM},
    "evaluation": {"perplexity": TEXT},
}
ABLATION = tiny(
    "tiny-ablation",
    quantization={"bits": 2, "group_size": 32},
    final_tune={"enabled": False, "steps": 2},
    seed=3,
    ablation={
        "studies": {
            "calibration": ["text", "random"], "loss": ["channel", "mse"],
            "stage": ["gptq", "norm_tweak", "final_tune"], "target": [], "schedule": [],
            "iterations": [], "bits": [3, "ternary"],
        },
        "seeds": {"loss": 2, "stage": 1, "calibration": 1},
        "text": "text.txt",
    },
)  # fmt: skip
POLYNOMIAL = {
    "name": "tiny-study",
    "device": "cpu",
    "evaluations": 2,
    "samples": {"train": 256, "test": 32},
    "network": {"hidden_layers": 1, "hidden_width": 8},
    "float_training": {"epochs": 2, "batch": 32, "lr": 1e-2},
    "grid": {"bits": [8, 4, 2, 1.58, 1], "epochs": 1, "batch": 32},
    "lora": {"rank": 2, "lr_scale": 0.2},
}
MEASURED = (
    "--text", "text.txt", "--max-tokens", "96", "--length", "32", "--tasks", "piqa", "--data",
    ITEMS, "--max-items", "4", "--device", "cpu",
)  # fmt: skip

CASES = {
    "quickstart": small("quickstart", *SHORT, "final_tune.steps=4"),
    "ternary-quickstart": small(
        "ternary-quickstart", "ternary.steps=3", SHORT[-1], *(f"ternary.{one}" for one in TRAINED)
    ),
    "finetune-quickstart": small(
        "finetune-quickstart",
        "model.source={quickstart.export_dir}",
        "finetune.block_steps=2",
        "finetune.steps=3",
        "evaluation.perplexity.max_tokens=512",
        *(f"finetune.{one}" for one in TRAINED),
        reads="quickstart",
    ),
    "ablation-small": small("ablation-small", *SHORT, "final_tune.steps=4"),
    "ablation": small(
        "ablation",
        *SHORT,
        "final_tune.steps=4",
        *(f"ablation.studies.{study}={values}" for study, values in FEWER.items()),
        "ablation.seeds.calibration=1",
        "ablation.seeds.loss=2",
        "ablation.seeds.stage=1",
    ),
    "polynomial-small": small("polynomial-small", *STUDY),
    "polynomial": small("polynomial", *STUDY, "float_training.batch=64", "samples.train=256"),
    **{name: Case("quantize", recipe) for name, recipe in QUANTIZED.items()},
    "tiny again": Case("quantize", QUANTIZED["tiny levels"], reads=frozenset({"tiny levels"})),
    "tiny ternary": Case("ternary", TERNARY),
    "tiny finetune": Case("finetune", FINETUNE, reads=frozenset({"tiny 2 bits"})),
    "tiny ablation": Case("ablate", ABLATION),
    "tiny polynomial": Case("polynomial", POLYNOMIAL),
    "tiny evaluate": Case(
        "evaluate",
        arguments=("models:/tiny-levels/1", "--against", "llama", *MEASURED),
        reads=frozenset({"tiny levels"}),
    ),
    "tiny compare": Case(
        "compare",
        arguments=("llama", "{tiny levels.export_dir}", "models:/tiny-2-bits@candidate", *MEASURED),
        reads=frozenset({"tiny levels", "tiny 2 bits"}),
    ),
    "tiny rebuild": Case(
        "rebuild", arguments=("models:/tiny-2-bits/1",), reads=frozenset({"tiny 2 bits"})
    ),
    "a problem that ends the run": Case(
        "quantize",
        tiny(
            "tiny-problem",
            on_problem="fail",
            norm_tweak={"lr": 10.0},
            quantization={"bits": 8, "group_size": None},
        ),
        code=1,
    ),
    "a wrong recipe": Case("quantize", tiny("tiny-wrong", quantization={"bits": 5}), code=2),
}
