"""What an export was made with: read off this machine, and compared with what was recorded."""

import importlib.metadata
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.engine.caching import source_hashes
from tasks.engine.provenance import (
    MadeWith,
    _commit,
    _processor,
    differences,
    made_here,
    made_with,
    made_with_modules,
)

RECORDED = MadeWith(
    python="3.11.7",
    system="Linux glibc 2.36",
    machine="x86_64",
    processor="A processor",
    instructions=["avx2", "fma"],
    device="cpu",
    threads=2,
    variables={"MKL_CBWR": "AVX2"},
    commit="1" * 40,
    changed=False,
    sources={"normtweak_core.errors": "a" * 64, "normtweak_core.model": "b" * 64},
    packages={"torch": "2.13.0", "numpy": "2.0"},
)
ROUNDING = "normtweak_core.quantization.grid"


def job(**facts) -> SimpleNamespace:
    return SimpleNamespace(**({"device": "cpu", "threads": 3} | facts))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"python": "3.12.1"}, "python: 3.11.7 recorded, 3.12.1 here"),
        ({"system": "Darwin"}, "system: Linux glibc 2.36 recorded, Darwin here"),
        ({"machine": "arm64"}, "machine: x86_64 recorded, arm64 here"),
        ({"processor": "Another"}, "processor: A processor recorded, Another here"),
        ({"device": "A GPU"}, "device: cpu recorded, A GPU here"),
        ({"threads": 1}, "threads: 2 recorded, 1 here"),
        ({"instructions": []}, "instructions: avx2 fma recorded, none here"),
        ({"variables": {}}, "variable MKL_CBWR: AVX2 recorded, none here"),
        ({"commit": None}, f"commit: {'1' * 40} recorded, none here"),
        ({"changed": True}, f"commit: {'1' * 40} recorded, {'1' * 40} with changes here"),
        (
            {"sources": RECORDED.sources | {"normtweak_core.errors": "c" * 64}},
            "code normtweak_core.errors: aaaaaaaaaaaa recorded, cccccccccccc here",
        ),
        (
            {"sources": {"normtweak_core.errors": "a" * 64}},
            "code normtweak_core.model: bbbbbbbbbbbb recorded, none here",
        ),
        (
            {"packages": {"torch": "2.14.0", "numpy": "2.0"}},
            "package torch: 2.13.0 recorded, 2.14.0 here",
        ),
        (
            {"packages": RECORDED.packages | {"new": "1"}},
            "package new: none recorded, 1 here",
        ),
    ],
)
def test_each_fact_that_differs_is_told(change, told):
    here = RECORDED.model_copy(update=change)
    assert [str(one) for one in differences(RECORDED, here)] == [told]


def test_nothing_differs_from_itself_and_every_fact_counts():
    assert differences(RECORDED, RECORDED) == []
    other = {
        name: {"another": "0"} if isinstance(value, dict) else ["x"] if name == "instructions"
        else not value if name == "changed" else 9 if name == "threads" else "0"
        for name, value in RECORDED.model_dump().items()
    }  # fmt: skip
    told = [one.fact for one in differences(RECORDED, MadeWith(**other))]
    assert told == [
        "python", "system", "machine", "processor", "device", "threads", "instructions",
        "variable MKL_CBWR", "variable another", "commit", "code another",
        "code normtweak_core.errors", "code normtweak_core.model", "package another",
        "package numpy", "package torch",
    ]  # fmt: skip


def test_the_environment_is_a_requirements_file():
    assert RECORDED.requirements() == "numpy==2.0\ntorch==2.13.0\n"


def test_the_record_is_of_this_machine_and_of_the_modules_that_compute(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.delenv("OMP_DYNAMIC", raising=False)
    found = made_with(job(), [ROUNDING, "tasks.engine.provenance"])
    assert (found.device, found.threads) == ("cpu", 3)
    assert found.variables["MKL_CBWR"] == "COMPATIBLE"
    assert "OMP_DYNAMIC" not in found.variables
    # What the module imports counts as well; code outside the core has the commit for it.
    assert set(source_hashes((ROUNDING,))) <= set(found.sources)
    assert {name.partition(".")[0] for name in found.sources} == {"normtweak_core"}
    assert found.packages["torch"] == importlib.metadata.version("torch")
    assert "normtweak" not in found.packages
    assert MadeWith.model_validate_json(found.model_dump_json()) == found


def test_a_module_that_is_not_here_any_more_is_told():
    recorded = made_with(job(), [ROUNDING]).model_copy(
        update={"sources": source_hashes((ROUNDING,)) | {"normtweak_core.gone": "d" * 64}}
    )
    told = [str(one) for one in differences(recorded, made_here(job(), recorded))]
    assert told == ["code normtweak_core.gone: dddddddddddd recorded, none here"]


def test_modules_of_the_core_only():
    found = made_with_modules(
        job(), {"tasks.engine.caching": "e" * 64, "normtweak_core.x": "f" * 64}
    )
    assert found.sources == {"normtweak_core.x": "f" * 64}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=clean).stdout


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "clone"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "one.py").write_text("1\n")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "One")
    _commit.cache_clear()
    yield folder
    _commit.cache_clear()


def test_the_commit_of_a_clone(clone):
    assert _commit(clone) == (git(clone, "rev-parse", "HEAD").strip(), False)


def test_a_clone_counts_as_changed_where_its_code_was_and_only_there(clone):
    (clone / "notes.txt").write_text("a file beside the code")
    assert _commit(clone)[1] is False
    _commit.cache_clear()
    (clone / "tasks" / "one.py").write_text("another length\n")
    assert _commit(clone)[1] is True


def test_inside_a_hook_of_git_the_clone_is_still_asked(clone, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/absent")
    assert _commit(clone)[0] == git(clone, "rev-parse", "HEAD").strip()


def test_an_installation_below_another_clone_or_without_git_has_no_commit(clone, monkeypatch):
    assert _commit(clone / "tasks") == (None, False)
    _commit.cache_clear()
    monkeypatch.setenv("PATH", "/absent")
    assert _commit(clone) == (None, False)


def test_the_processor_is_told_by_its_name_and_what_kernels_look_for(tmp_path):
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text(
        "processor : 0\nmodel name\t: Some CPU\nflags : fpu avx2 fma avx512f\n\n"
        "processor : 1\nmodel name\t: Another\nflags : fpu\n"
    )
    arm.write_text("processor : 0\nFeatures : fp asimd sve bf16\n")
    assert _processor(x86) == ("Some CPU", ["avx2", "fma", "avx512f"])
    assert _processor(arm)[1] == ["asimd", "bf16", "sve"]
    assert _processor(tmp_path / "absent")[1] == []
