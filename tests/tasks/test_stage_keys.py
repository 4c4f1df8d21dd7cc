"""What a stage reads besides the recipe is in its key: code it runs, files, versions, readers."""

import dataclasses
import importlib.metadata
import inspect
import json
from pathlib import Path

import pytest

from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from tests.flows.stage_keys import changed, made, stage_keys
from tests.flows.tiny_model import recipe_values, ternary_values, write_project
from tests.tasks.stage_sources import core_modules_of, declared_stages

STAGES = [
    "dry run",
    "calibrate",
    "float type",
    "block 0",
    "block 1",
    "final tune",
    "export",
    "verify",
]
STAGES += ["evaluate float", "evaluate"]


@pytest.fixture
def project(tmp_path, root, engine_environment):
    write_project(tmp_path)
    return tmp_path


def keys(project: Path, **sections: dict) -> dict[str, str]:
    values = recipe_values(project)
    for section, content in {"final_tune": {"enabled": True}, **sections}.items():
        values = changed(values, section, content)
    return stage_keys(Recipe.parse(values))


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert list(before) == list(after) == STAGES
    return {name for name in before if before[name] != after[name]}


# The code


def test_every_cached_stage_is_looked_at():
    names = {"calibrate", "float_type_stage", "quantize_block_stage", "final_tune_stage"}
    names |= {"export_stage", "verify_stage", "evaluate_alone_stage", "evaluate_pair_stage"}
    names |= {"evaluate_task_stage"}
    names |= {"float_stage", "cell_stage"}
    names |= {"surgery_stage", "train_stage", "ternary_export_stage"}
    names |= {
        "dry_run_stage",
        "training_text_stage",
        "ternary_float_type_stage",
        "start_float_type_stage",
    }
    names |= {"finetune_block_stage", "finetune_stage", "finetune_export_stage"}
    assert {stage.function for stage in declared_stages()} == names


@pytest.mark.parametrize("stage", declared_stages(), ids=lambda stage: stage.function)
def test_the_sources_of_a_stage_cover_every_core_module_it_imports(stage, engine_environment):
    from tasks.engine.caching import source_hashes

    imported = core_modules_of(stage)
    assert imported  # else the test looks at nothing
    assert imported - source_hashes(tuple(stage.sources())).keys() == set()


@pytest.fixture
def edited(monkeypatch, engine_environment):
    """A function that has a module read as if a constant in it had been changed."""
    from tasks.engine import caching

    real = caching._read_source

    def edit(module: str) -> None:
        monkeypatch.setattr(
            caching,
            "_read_source",
            lambda name: ("another", real(name)[1]) if name == module else real(name),
        )
        caching.source_fingerprint.cache_clear()

    caching.source_fingerprint.cache_clear()
    yield edit
    caching.source_fingerprint.cache_clear()


@pytest.mark.parametrize("stage", declared_stages(), ids=lambda stage: stage.function)
def test_a_constant_in_the_module_of_a_stage_counts(stage, edited):
    from tasks.engine.caching import source_fingerprint

    before = source_fingerprint(tuple(stage.sources()))
    edited(stage.module)
    assert source_fingerprint(tuple(stage.sources())) != before


SEGMENTS = ["train_stage", "finetune_stage"]


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        (
            "tasks.stages.training.segments",
            [*SEGMENTS, "ternary_export_stage", "finetune_export_stage"],
        ),
        (
            "tasks.models.subjects",
            ["evaluate_alone_stage", "evaluate_pair_stage", "evaluate_task_stage"],
        ),
        ("tasks.models.quantized_layers", ["export_stage", "final_tune_stage"]),
        ("tasks.engine.progress", []),
        ("tasks.engine.locks", []),
        ("tasks.engine.events", []),
    ],
)
def test_a_module_of_tasks_counts_for_the_stages_that_compute_with_it(module, counts, edited):
    from tasks.engine.caching import source_fingerprint

    stages = {stage.function: tuple(stage.sources()) for stage in declared_stages()}
    before = {name: source_fingerprint(sources) for name, sources in stages.items()}
    edited(module)
    after = {name: source_fingerprint(sources) for name, sources in stages.items()}
    changed_stages = {name for name in stages if before[name] != after[name]}
    assert changed_stages >= set(counts)
    assert bool(changed_stages) is bool(counts)


def test_the_split_of_a_training_is_in_the_key_of_its_segments(project, edited):
    from tasks.models.job import open_job
    from tasks.results import CalibrationResult
    from tasks.stages.training.surgery import SurgeryResult
    from tasks.stages.training.ternary import training_origin

    recipe = TernaryRecipe.parse(ternary_values(project))
    job = open_job(recipe.model, recipe.seed)
    data, surgery = made(CalibrationResult, "data"), made(SurgeryResult, "surgery")
    before = training_origin(job, data, surgery, recipe.ternary)
    edited("tasks.stages.training.segments")
    assert training_origin(job, data, surgery, recipe.ternary) != before


def test_what_the_verification_launches_by_path_is_among_its_sources(engine_environment):
    from normtweak_core.export.verification.verify import READER
    from tasks.engine.artifacts import file_sha256
    from tasks.engine.caching import source_hashes
    from tasks.stages import export as exporting

    hashes = source_hashes(tuple(exporting.VERIFY_SOURCES))
    assert hashes["normtweak_core.export.verification.reader"] == file_sha256(READER)


@pytest.mark.parametrize("kind", ["float", "export", "quantized"])
def test_the_code_that_opens_a_measured_model_counts(kind, monkeypatch, engine_environment):
    from tasks.models import subjects

    subject = subjects.Subject("it", kind, Path("it"), "1", "2", "float32", "cpu")
    asked = []
    monkeypatch.setattr(subjects, "stage_key", lambda *_, sources, **__: asked.append(sources))
    subject.key("alone", {}, ["normtweak_core.errors"])
    beside = dataclasses.replace(subject, kind="float")
    subject.key("pair", {}, ["normtweak_core.errors"], beside)
    opener = subjects.OPENERS[kind]
    assert asked == [
        ["normtweak_core.errors", opener],
        ["normtweak_core.errors", opener, subjects.OPENERS["float"]],
    ]
    assert opener in inspect.getsource(subjects.Subject.model.func)


# Files of the model


GENERATION = {"eos_token_id": 3}
EVERYTHING = set(STAGES) - {"dry run"}
EXPORTED = {"export", "verify", "evaluate"}


@pytest.mark.parametrize(
    ("name", "content", "source", "expected"),
    [
        ("generation_config.json", GENERATION, "text", EXPORTED),
        ("generation_config.json", GENERATION, "generated", EVERYTHING - {
            "evaluate float",
        }),
        ("qwen.tiktoken", {}, "text", EVERYTHING),
        ("tokenizer.json", {"version": "1.1"}, "text", EVERYTHING),
        ("config.json", {"transformers_version": "4.40.0"}, "text", EVERYTHING),
        ("config.json", {"_name_or_path": "elsewhere"}, "text", set()),
        ("README.md", {}, "text", set()),
    ],
)  # fmt: skip
def test_a_file_of_the_model_counts_where_it_is_read(project, name, content, source, expected):
    calibration = recipe_values(project)["calibration"]
    if source == "generated":
        calibration = {"source": "generated", "samples": 8, "length": 16}
    before = keys(project, calibration=calibration)
    path = project / "model" / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | content))
    after = keys(project, calibration=calibration)
    assert differing(before, after) == expected
    path.write_text(json.dumps(known | content | {"pad_token_id": 5}))
    again = keys(project, calibration=calibration)
    # The edit of a file that is there counts as its appearance did; that of a config always.
    assert differing(after, again) == (set(STAGES) if name == "config.json" else expected)


# Data sets


def test_the_same_bytes_in_another_kind_of_file_are_another_text(project):
    rows = '{"text": "one text to calibrate with"}\n' * 40
    (project / "rows.txt").write_text(rows)
    (project / "rows.jsonl").write_text(rows)
    data = {"source": "text", "samples": 8, "length": 16}
    found = {
        kind: keys(
            project,
            calibration=data | {"path": str(project / f"rows.{kind}")},
            evaluation={"perplexity": {"path": str(project / f"rows.{kind}")}},
        )
        for kind in ("txt", "jsonl")
    }
    assert differing(found["txt"], found["jsonl"]) == set(STAGES) - {"dry run"}


def test_a_tilde_reads_and_counts_as_the_folder_it_stands_for(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    data = {"source": "dataset", "samples": 8, "length": 16}
    known = keys(project, calibration=data | {"path": str(project / "calibration.txt")})
    assert keys(project, calibration=data | {"path": "~/calibration.txt"}) == known
    (project / "calibration.txt").write_text("another text\n")
    changed_text = keys(project, calibration=data | {"path": "~/calibration.txt"})
    assert differing(known, changed_text) >= {"calibrate", "block 0", "export"}


def test_a_hub_data_set_counts_by_its_commit_which_is_asked_once_a_run(project, monkeypatch):
    from normtweak_core.calibration.config import CalibrationConfig
    from tasks.models import job as jobs
    from tasks.stages.calibrate import _revision, calibration_key

    commits = iter(["a" * 40, "b" * 40, "b" * 40])
    monkeypatch.setattr(jobs, "hub_data_revision", lambda path: next(commits))
    config = CalibrationConfig(source="dataset", path="owner/data", samples=8, length=16)
    model = Recipe.parse(recipe_values(project)).model

    def run():
        job = jobs.open_job(model, 0)
        return calibration_key(job, config), _revision(job, config)

    (first, read), (moved, newer), (same, _) = run(), run(), run()
    assert (read, newer) == ("a" * 40, "b" * 40)
    assert first != moved == same


# Versions and readers


@pytest.mark.parametrize(("form", "expected"), [("auto", EXPORTED), ("gptq", set())])
def test_the_version_of_the_library_counts_where_it_reads_the_export(
    project, monkeypatch, form, expected
):
    before = keys(project, export={"format": form})
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "9" if n == "compressed-tensors" else real(n)
    )
    assert differing(before, keys(project, export={"format": form})) == expected


@pytest.mark.parametrize(("form", "expected"), [("auto", set()), ("gptq", {"verify"})])
def test_the_packages_of_the_gptq_reader_count_where_they_read(
    project, monkeypatch, form, expected
):
    from tasks.stages import export as exporting

    monkeypatch.setattr(exporting, "REPOSITORY", project)
    packages = project / ".venv-reader-gptq" / "lib" / "python3.11" / "site-packages"
    absent = keys(project, export={"format": form})
    (packages / "gptqmodel-7.7.0.dist-info").mkdir(parents=True)
    present = keys(project, export={"format": form})
    assert differing(absent, present) == expected
    (packages / "gptqmodel-7.7.0.dist-info").rename(packages / "gptqmodel-7.8.0.dist-info")
    assert differing(present, keys(project, export={"format": form})) == expected
    (packages / "notes.txt").write_text("no package")
    assert exporting.environment_sha256(project / "nowhere" / "bin" / "python") is None
