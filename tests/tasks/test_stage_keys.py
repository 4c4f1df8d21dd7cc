"""What a stage reads besides the recipe is in its key: code it runs, files, versions, readers."""

import ast
import importlib.metadata
import json
from pathlib import Path

import pytest

from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from tasks.stages.training.training import segment_ends
from tests.flows.declared import STAGES as DECLARED
from tests.flows.stage_keys import changed, quantize_keys, stage_keys
from tests.flows.tiny_model import recipe_values, ternary_values, write_project

REPOSITORY = Path(__file__).parents[2]
STAGES = [
    "dry run",
    "calibrate",
    "float type",
    "block 0",
    "block 1",
    "final tune",
    "export",
    "verify",
    "size check",
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
    return quantize_keys(Recipe.parse(values))


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert list(before) == list(after) == STAGES
    return {name for name in before if before[name] != after[name]}


# The code


@pytest.mark.parametrize("stage", DECLARED, ids=lambda stage: f"{stage.kind} {stage.name}")
def test_the_sources_of_a_stage_hold_all_that_its_modules_import(stage, engine_environment):
    """Read another way than by the keys: from syntax trees, lazy modules included."""
    from tasks.engine.caching import OPERATING, source_hashes

    found, waiting = set(), list(stage.modules)
    while waiting:
        module = waiting.pop()
        if module in found or module in OPERATING:
            continue
        found.add(module)
        waiting += imported_by(module)
    assert any(name.startswith("normtweak_core.") for name in found)
    assert found <= source_hashes(stage.modules).keys()


def imported_by(module: str) -> list[str]:
    """Return the modules of ours that a module imports, at its top, inside functions or lazily."""
    place = REPOSITORY / (module.replace(".", "/") + ".py")
    if not place.is_file():
        place = place.with_suffix("") / "__init__.py"
    names = set()
    for node in ast.walk(ast.parse(place.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy":
            names.add(node.args[0].value)
    ours = [name for name in names if name.startswith(("tasks.", "normtweak_core."))]
    return [name for name in ours if (REPOSITORY / (name.replace(".", "/") + ".py")).is_file()]


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


@pytest.mark.parametrize("stage", DECLARED, ids=lambda stage: f"{stage.kind} {stage.name}")
def test_a_constant_in_the_module_of_a_stage_counts(stage, edited):
    from tasks.engine.caching import source_fingerprint

    before = source_fingerprint(stage.modules)
    edited(stage.body.__module__)
    assert source_fingerprint(stage.modules) != before


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("tasks.stages.training.segments", {"training"}),
        ("tasks.models.subjects", {"evaluate", "evaluate float", "evaluate tasks"}),
        ("tasks.models.quantized_layers", {"export", "final tune"}),
        ("normtweak_core.tweak.final", {"final tune"}),
        ("normtweak_core.export.opening", {"evaluate", "evaluate tasks"}),
        ("tasks.engine.progress", set()),
        ("tasks.engine.locks", set()),
        ("tasks.engine.events", set()),
    ],
)
def test_a_module_counts_for_the_stages_that_compute_with_it(module, counts, edited):
    from tasks.engine.caching import source_fingerprint

    before = [source_fingerprint(stage.modules) for stage in DECLARED]
    edited(module)
    after = [source_fingerprint(stage.modules) for stage in DECLARED]
    differing = {s.name for s, a, b in zip(DECLARED, before, after, strict=True) if a != b}
    assert differing >= counts
    assert bool(differing) is bool(counts)


def test_the_split_of_a_training_is_in_the_key_of_its_segments(project, edited):
    from flows.ternary import TERNARY

    recipe = TernaryRecipe.parse(ternary_values(project))
    before = stage_keys(TERNARY, recipe)
    edited("tasks.stages.training.segments")
    after = stage_keys(TERNARY, recipe)
    assert all(before[f"train {until}"] != after[f"train {until}"] for until in segment_ends(24))


def test_what_the_verification_launches_by_path_is_among_its_sources(engine_environment):
    from normtweak_core.export.verification.verify import READER
    from tasks.engine.artifacts import file_sha256
    from tasks.engine.caching import source_hashes
    from tasks.stages.verify import verify

    hashes = source_hashes(verify.modules)
    assert hashes["normtweak_core.export.verification.reader"] == file_sha256(READER)


# Files of the model


GENERATION = {"eos_token_id": 3}
EVERYTHING = set(STAGES) - {"dry run"}
EXPORTED = {"export", "verify", "size check", "evaluate"}


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
    from tasks.models.given_data import hub_revision
    from tasks.models.work import Work
    from tasks.stages.calibrate import calibrate

    commits = iter(["a" * 40, "b" * 40, "b" * 40])
    monkeypatch.setattr(jobs, "hub_data_revision", lambda path: next(commits))
    config = CalibrationConfig(source="dataset", path="owner/data", samples=8, length=16)
    model = Recipe.parse(recipe_values(project)).model

    def run():
        job = jobs.open_job(model, 0)
        return calibrate.key(Work(None, job, config), {}, None), hub_revision(job, config)

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
    from tasks.stages import verify as verifying

    monkeypatch.setattr(verifying, "REPOSITORY", project)
    packages = project / ".venv-reader-gptq" / "lib" / "python3.11" / "site-packages"
    absent = keys(project, export={"format": form})
    (packages / "gptqmodel-7.7.0.dist-info").mkdir(parents=True)
    present = keys(project, export={"format": form})
    assert differing(absent, present) == expected
    (packages / "gptqmodel-7.7.0.dist-info").rename(packages / "gptqmodel-7.8.0.dist-info")
    assert differing(present, keys(project, export={"format": form})) == expected
    (packages / "notes.txt").write_text("no package")
    assert verifying.environment_sha256(project / "nowhere" / "bin" / "python") is None
