"""The MLflow model folder of an export: one plain Hugging Face folder behind two flavours.

::

    MLmodel             flavours `transformers` and `python_function`
    requirements.txt    what a reader needs; nothing of ours
    python_env.yaml
    model/              the export without its reports: AutoModelForCausalLM.from_pretrained opens
                        it as is
    components/tokenizer/   the tokenizer again, where mlflow.transformers looks for it
    components/processor/   of a model that reads images: what takes both apart
    code/               the python_function loader, one self-contained file
    reports/            what the caller attached

``mlflow.transformers.log_model`` is not used: it wants the model in memory, and writes ``model/``
without its tokenizer.
"""

import hashlib
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from normtweak_core.errors import InputError
from normtweak_core.model.tokenizer_files import processor_files, tokenizer_files
from normtweak_core.vision.kinds import reads_images

LOADER = Path(__file__).with_name("text_generation.py")
READERS = {
    None: ("mlflow", "torch"),
    "compressed-tensors": ("mlflow", "torch", "compressed-tensors"),
    "bitnet": ("mlflow", "torch"),
    # gptqmodel brings the torch it wants, and a pyarrow that the whole of mlflow does not allow.
    "gptq": ("mlflow-skinny", "pandas"),
}
READERS_OF_ALL = ("transformers", "safetensors", "accelerate")
GPTQ_READERS = ("optimum==2.3.0", "gptqmodel==7.7.0")
NEW_TOKENS = 64  # where a call names no other number
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


def write_model_folder(folder: Path, export_dir: Path, reports: list[Path], model: Model) -> None:
    """Write the MLflow folder of an export; its files are hard links where the disk allows it.

    Args:
        folder: Where to write; must not exist.
        export_dir: A complete Hugging Face folder: config, weights, tokenizer.
        reports: Files to attach under ``reports/``; names must differ.
        model: The MLflow record to fill; receives flavours, signature and size.

    Raises:
        InputError: The export lacks its config, weights or tokenizer, or two reports share a name.
    """
    config = read_config(export_dir)
    # The export keeps the reports of every recipe that has led to it; the caller picked his own.
    others = shutil.ignore_patterns("reports")
    shutil.copytree(export_dir, folder / "model", ignore=others, copy_function=_link)
    components, sees = folder / "components", reads_images(config) and processor_files(export_dir)
    _link_all(export_dir, tokenizer_files(export_dir), components / "tokenizer")
    if sees:
        files = [export_dir / "config.json", *tokenizer_files(export_dir)]
        _link_all(export_dir, files + processor_files(export_dir), components / "processor")
    attach(reports, folder / "reports")

    # Two models in one process must not share a loader of different versions: name it by content.
    source = LOADER.read_bytes()
    loader = f"text_generation_{hashlib.sha256(source).hexdigest()[:12]}"
    (folder / "code").mkdir()
    (folder / "code" / f"{loader}.py").write_bytes(source)
    (folder / "requirements.txt").write_text("\n".join(requirements(config)) + "\n")
    (folder / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\n"
        "build_dependencies: [pip]\n"
        "dependencies: [-r requirements.txt]\n"
    )

    model.signature = signature(config)
    model.add_flavor(
        "transformers",
        transformers_version=metadata.version("transformers"),
        code=None,
        task="image-text-to-text" if sees else "text-generation",
        instance_type="ImageTextToTextPipeline" if sees else "TextGenerationPipeline",
        pipeline_model_type=config["architectures"][0],
        source_model_name="model",
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        **({"processor_type": "AutoProcessor"} if sees else {}),
        **_dtype(config),
    )
    mlflow.pyfunc.add_to_model(
        model, loader_module=loader, data="model", code="code", python_env="python_env.yaml"
    )
    model.model_size_bytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    model.save(str(folder / "MLmodel"))


def signature(config: dict) -> ModelSignature:
    """Return what a model gives back and which params it takes.

    No schema of the inputs: with one, MLflow makes a table of whatever a model is given before the
    model sees it, and hands on the first column, or the first of several prompts.
    """
    parts = (config, config.get("text_config") or {})
    lengths = [
        part[key] for part in parts for key in CONTEXT_KEYS if isinstance(part.get(key), int)
    ]
    new_tokens = min([NEW_TOKENS, *(max(1, length // 2) for length in lengths)])
    return ModelSignature(
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema(
            [
                ParamSpec("max_new_tokens", "long", new_tokens),
                ParamSpec("temperature", "double", 0.0),
                ParamSpec("seed", "long", 0),
            ]
        ),
    )


def read_config(export_dir: Path) -> dict:
    """Return config.json of an export that has all a reader needs.

    Raises:
        InputError: The folder lacks its config, its architecture, weights or tokenizer.
    """
    needed = {
        "config.json": "config.json",
        "weights": "*.safetensors",
        "a tokenizer": "tokenizer_config.json",
    }
    missing = [what for what, pattern in needed.items() if not list(export_dir.glob(pattern))]
    if missing:
        raise InputError(
            f"An export to register must hold config.json, weights and a tokenizer; {export_dir} "
            f"lacks {', '.join(missing)}. Export the model again."
        )
    config = json.loads((export_dir / "config.json").read_text(encoding="utf-8"))
    if not config.get("architectures"):
        raise InputError(
            f"config.json of an export must name its architecture, found none in {export_dir}. "
            "Export the model again."
        )
    return config


def requirements(config: dict) -> list[str]:
    """Return the exact packages a reader of this export needs, sorted; none of them ours."""
    method = config.get("quantization_config", {}).get("quant_method")
    # A local part such as +cpu names a build of one machine: no index has it.
    pins = [
        f"{name}=={metadata.version(name).partition('+')[0]}"
        for name in (*READERS_OF_ALL, *READERS[method])
    ]
    if reads_images(config):
        pins.append(f"pillow=={metadata.version('pillow')}")
    return sorted(pins + list(GPTQ_READERS if method == "gptq" else ()))


def attach(reports: list[Path], folder: Path) -> None:
    """Put reports into a folder, which is made if there are any.

    Raises:
        InputError: Two reports share a name.
    """
    names = [report.name for report in reports]
    if len(set(names)) != len(names):
        raise InputError(
            f"Reports must have names of their own, found {sorted(names)}. Rename one of them."
        )
    if reports:
        folder.mkdir(parents=True)
    for report in reports:
        _link(report, folder / report.name)


def _dtype(config: dict) -> dict[str, str]:
    dtype = config.get("dtype") or config.get("torch_dtype")
    return {"torch_dtype": f"torch.{dtype}"} if dtype else {}


def _link_all(root: Path, files: list[Path], folder: Path) -> None:
    """Put files below a root into a folder, under the names that they have there."""
    for path in files:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(path, target)


def _link(source: str | os.PathLike, target: str | os.PathLike) -> None:
    try:
        # A link made by following: the stored model must not point out of its own folder.
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
