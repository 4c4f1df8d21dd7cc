"""Commands: their help, what they print, and how each kind of failure is told."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flows.cli import COMMANDS, main
from flows.commands import failures
from flows.reports.terminal import print_lines, run_lines
from normtweak_core import errors
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.writer import write_export
from tasks.engine.environment import FOLDERS
from tasks.engine.locks import LockTimeoutError
from tasks.server.api import ServerError
from tests.flows.tiny_model import variables_of
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

RESULT = {
    "export_dir": "/somewhere/exports/tiny-w2g64-0123",
    "export_sha256": "0" * 64,
    "metrics": {
        "perplexity/float": 4.4605, "perplexity/float_stderr": 0.2025,
        "perplexity/ratio": 1.3446,
        "perplexity/quantized": 5.9974, "perplexity/quantized_stderr": 0.25937,
        "kl/mean": 0.34309, "kl/stderr": 0.013926, "top1_agreement": 0.70965,
        "top1_agreement_stderr": 0.0096161, "bits_per_weight": 3.31215, "size_bytes": 197916.0,
    },
    "registered": {"name": "tiny", "version": 3, "aliases": ["candidate"],
        "gate_failures": ["kl/mean must be at most 0.1 (gate.max_kl); found 0.3"],
        "promotion": "not champion: larger than version 2",
    },
    "blocks": [{"cached": True}, {"cached": False}],
    "problems": ["block 1: ridge of mlp.up_proj raised to 0.1"],
    "notes": ["block 0: norm tweak rolled back"],
    "seconds": 103.0,
    "peak_rss_bytes": 681553920,
}  # fmt: skip


@pytest.fixture
def home(tmp_path):
    with variables_of(tmp_path / "state") as root:
        yield root


def made(root: Path) -> Path:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    return root


def test_a_launcher_of_several_processes_is_refused(capsys, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(["ternary", "conf/ternary-quickstart.yaml"]) == 2
    assert capsys.readouterr().err == (
        "normtweak: a command runs in one process; a launcher has started 2: start it without one. "
        "In several processes runs normtweak_core.training.trainer, as a library.\n"
    )


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS), ["reference", "train"]])
def test_every_command_has_help_with_examples(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:\n  normtweak " in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_the_help_names_exit_codes_and_what_is_not_built(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "0 done, 1 failed, 2 bad input, 130 interrupted, 143 ended by SIGTERM" in shown
    assert "not built yet: sweep" in shown


def test_the_summary_tells_what_came_of_it():
    assert run_lines("tiny", RESULT) == [
        ("model", "tiny"),
        ("perplexity", "5.997 ± 0.259 (float model 4.460 ± 0.203, +34.5 %)"),
        ("kl divergence", "0.3431 ± 0.0139 (nats per token, from the float model)"),
        ("same first choice", "71.0 % ± 1.0 % (of positions)"),
        ("size", "197.9 kB, 3.31 bits per quantized weight"),
        ("time", "2 min, 1 of 2 blocks cached, peak memory 681.6 MB"),
        ("export", "/somewhere/exports/tiny-w2g64-0123"),
        ("registered", "tiny version 3 @candidate"),
        ("gate", "failed: kl/mean must be at most 0.1 (gate.max_kl); found 0.3"),
        ("promotion", "not champion: larger than version 2"),
        ("problem", "block 1: ridge of mlp.up_proj raised to 0.1"),
        ("note", "block 0: norm tweak rolled back"),
        ("look at it", "normtweak ui"),
    ]


def test_many_problems_and_notes_are_counted():
    many = {"problems": [f"problem {i}" for i in range(9)], "notes": ["a", "b", "c", "d"]}
    lines = run_lines("tiny", RESULT | many)
    assert lines[-5:-1] == [
        ("problem", "4 more, in the report"),
        ("note", "a"),
        ("note", "b"),
        ("note", "2 more, in the report"),
    ]


def test_the_summary_is_plain_where_nobody_looks(capsys):
    print_lines(run_lines("tiny", RESULT))
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "perplexity:        5.997 ± 0.259 (float model 4.460 ± 0.203, +34.5 %)"
    assert shown[-1] == "look at it:        normtweak ui"


def test_the_summary_on_a_terminal_says_the_same(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_lines(run_lines("tiny", RESULT))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "perplexity        5.997 ± 0.259 (float model 4.460 ± 0.203, +34.5 %)\n" in shown


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.HessianError("block 3 cannot be solved."), "block 3 cannot be solved. The log is "),
        (errors.NonFiniteError("w is NaN"), "w is NaN. The log is "),
        (errors.ProblemError("no problem is allowed"), "no problem is allowed. The log is "),
        (errors.VerificationError("it differs"), "it differs. The log is "),
        (LockTimeoutError("another holds it"), "another holds it. The log is "),
        (
            ServerError("The server ended.", Path(__file__)),
            f"The server ended. See {__file__}. The log is ",
        ),
        (MemoryError(), "memory ran out; lower calibration.samples or calibration.length, or "),
        (OSError(errno.ENOSPC, "No space", "/d/x"), "the disk of /d/x is full; make room and run "),
    ],
)
def test_a_foreseen_failure_is_one_sentence_and_a_log_with_the_rest(error, sentence, home, capsys):
    made(home)
    assert failures.exit_code(error, "quantize") == 1
    text = capsys.readouterr().err
    assert text.startswith(f"normtweak: {sentence}")
    assert text.count("\n") == 1
    log = Path(re.search(r"The log is (\S+)\.\n", text)[1])
    assert log.parent == home / "logs"
    assert type(error).__name__ in log.read_text()


def test_an_unforeseen_failure_leaves_its_traceback_in_a_file(home, capsys):
    made(home)
    with pytest.raises(KeyError) as caught:
        raise KeyError("nobody thought of this")
    assert failures.exit_code(caught.value, "quantize") == 1
    text = capsys.readouterr().err
    found = re.fullmatch(
        r"normtweak: an unexpected KeyError ended the run \('nobody thought of this'\); the "
        r"traceback is in (\S+)\.\n",
        text,
    )
    log = Path(found[1])
    assert log.parent == home / "logs"
    assert "Traceback (most recent call last)" in log.read_text()
    assert 'raise KeyError("nobody thought of this")' in log.read_text()


def test_without_a_state_root_the_log_goes_to_the_temporary_files(
    home, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert failures.exit_code(RuntimeError("early"), "quantize") == 1
    assert f"the traceback is in {tmp_path}/normtweak-" in capsys.readouterr().err
    assert not home.exists()


def a_file_for_logs(home):
    (home / "logs").write_text("")


def a_home_of_nobody(home):
    os.environ["NORMTWEAK_HOME"] = "~nosuchuser/state"


def a_home_of_a_long_name(home):
    os.environ["NORMTWEAK_HOME"] = "x" * 300


def a_log_that_is_a_folder(home):
    (home / "logs" / "taken.log").mkdir(parents=True)
    return home / "logs" / "taken.log"


@pytest.mark.parametrize(
    "damage", [a_file_for_logs, a_home_of_nobody, a_home_of_a_long_name, a_log_that_is_a_folder]
)
def test_a_log_that_cannot_be_written_to_its_place_is_no_second_failure(
    damage, home, capsys, tmp_path, monkeypatch
):
    made(home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("NORMTWEAK_HOME", str(home))
    log = damage(home)
    assert failures.exit_code(OSError(errno.ENOSPC, "No space"), "quantize", log) == 1
    text = capsys.readouterr().err
    assert text.startswith("normtweak: the disk of ")
    assert text.count("\n") == 1
    log = Path(re.search(r"The log is (\S+)\.\n", text)[1])
    assert log.parent == tmp_path
    assert "OSError: [Errno 28] No space" in log.read_text()


def test_a_failure_is_told_where_no_log_can_be_written(home, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert failures.exit_code(RuntimeError("early"), "quantize") == 1
    assert capsys.readouterr().err == (
        "normtweak: an unexpected RuntimeError ended the run (early); no log of it could be "
        "written.\n"
    )


@pytest.mark.parametrize(
    ("command", "less"),
    [
        ("ternary", "memory ran out; lower ternary.batch or ternary.data.length, or use a"),
        ("evaluate", "memory ran out; lower --length, or use a machine with more"),
        ("polynomial", "memory ran out; use a machine with more"),
    ],
)
def test_what_takes_less_memory_is_told_by_the_keys_of_the_command(command, less, home, capsys):
    made(home)
    assert failures.exit_code(MemoryError(), command) == 1
    assert capsys.readouterr().err.startswith(f"normtweak: {less}")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(KeyboardInterrupt(), 130, "interrupted"), (failures.Terminated(), 143, "ended by SIGTERM")],
)
def test_being_stopped_is_no_failure(error, code, text, home, capsys):
    assert failures.exit_code(error, "quantize") == code
    assert capsys.readouterr().err == (
        f"normtweak: {text}; finished stages are kept, and the same command goes on from there.\n"
    )
    assert not home.exists()


def test_ctrl_c_inside_code_made_from_text_ends_by_the_code_too(tmp_path):
    """CPython would end the process by SIGINT itself, where its program is run by `-m`."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from flows.commands.failures import exit_code\n"
        "try:\n"
        "    exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt as error:\n"
        "    sys.exit(exit_code(error, 'quantize'))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(failures.__file__).parents[2])])
    command = [sys.executable, "-m", "interrupted"]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode == 130


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    source = save_tiny_model(folder / "model", tiny_config("llama"))
    write_export(folder / "out", source, quantize_all(source, 2, 32, False), {}, ExportConfig())
    return folder / "out"


def test_verify_tells_what_was_compared_and_makes_no_state(export, home, capsys):
    assert main(["verify", str(export)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{export}: the reader finds what was quantized"
    assert lines[2] == "weights: 20 tensors equal bit for bit, 14 of them dequantized"
    assert lines[4] == "tokenizer: same answers"
    assert not home.exists()


def test_verify_fails_where_the_export_was_altered(export, home, capsys):
    tensors = load_file(export / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_packed"][0, 0] ^= 1
    scales = "model.layers.0.mlp.down_proj.weight_scale"
    tensors[scales] = tensors[scales].roll(1, dims=0).contiguous()
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})
    tokenizer = export / "tokenizer.json"
    text = tokenizer.read_text().replace('"T": 51', '"T": 52').replace('"U": 52', '"U": 51')
    tokenizer.write_text(text)
    assert main(["verify", str(export)]) == 1
    first, text = capsys.readouterr().err.split("\n", 1)
    assert first.endswith(f" verify {export}: opened by a reader without our code")
    assert text.startswith("normtweak: an independent reader finds something else in ")
    assert "checks that fail: scales (1), weight (2), file (2), tokenizer (5)" in text
    assert "scales of model.layers.0.mlp.down_proj: expected " in text
    assert "weight of model.layers.0.mlp.down_proj.weight: expected " in text
    assert "tokenizer of ids: expected " in text
    assert text.count("\n") == 1
