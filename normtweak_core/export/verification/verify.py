"""Proves that an independent reader finds in an export what was quantized; no torch here."""

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.folder import MANIFEST, MODEL_CARD
from normtweak_core.export.formats.checks import GPTQ_READER, GPTQ_READER_DONE
from normtweak_core.export.payload import file_hashes, file_sha256, hash_lines, payload_bytes
from normtweak_core.model.hub import LEGAL_FILES
from normtweak_core.scratch import scratch_folder

log = logging.getLogger(__name__)

READER = Path(__file__).with_name("reader.py")
GGUF_READER = Path(__file__).with_name("gguf_reader.py")  # of the file beside an export
PROBE, SIGNATURE = "verify/probe.safetensors", "model.sig"
SHOWN = 3  # problems named in the error, and one at least of each check
# Seconds the reader may take: a start, a slow disk, and float16 on an old processor (the probe has
# some 400 tokens).
SECONDS_TO_START = 1800
BYTES_PER_SECOND = 10_000_000
WEIGHTS_PER_SECOND = 500_000
LONGER = "Give it longer with export.verify_timeout in a recipe, or normtweak verify --timeout"


@dataclass(frozen=True)
class VerificationReport:
    """What the reader found; a mismatch is an error instead."""

    format: str
    payload_sha256: str
    num_tensors: int  # compared bit for bit
    num_quantized: int  # of them dequantized weights
    logit_difference: float  # as a fraction of the largest reference logit
    logit_statistic: str  # max, or mean: what the difference is
    logit_tolerance: float
    argmax_agreement: float
    # Largest of all ternary linears, each run by itself, as a fraction of its largest output.
    layer_difference: float | None  # None where weights are dense
    layer_tolerance: float | None
    tokenizer: bool  # whether there was one to compare
    gguf_tensors: int | None  # of the GGUF file, compared bit for bit; None: there is none
    reader_versions: dict[str, str]
    seconds: float


def verify_export(
    folder: Path, python: str | Path = sys.executable, timeout: float | None = None
) -> VerificationReport:
    """Open ``folder`` in a fresh process that imports nothing of ours and compare everything.

    Args:
        folder: The export folder; nothing else is needed.
        python: Interpreter whose packages read the format; for gptq that of the reader environment.
        timeout: Seconds until the reader is ended; None: as `seconds_allowed`.

    Raises:
        InputError: The folder is not an export, or the interpreter does not exist.
        VerificationError: The reader could not open the export, took too long, or found something
            else than the manifest says; the first differences are named.

    """
    manifest = read_manifest(folder)
    if not Path(python).is_file():
        raise InputError(
            f"verification needs a Python interpreter; there is none at {python}. "
            "For gptq run `make reader-gptq`."
        )
    start = time.monotonic()
    allowed = seconds_allowed(folder, manifest) if timeout is None else timeout
    report = _run_reader(READER, folder, python, allowed)
    gguf = _read_gguf(folder, manifest, allowed)
    for key in ("problems", "ours"):
        report[key] += gguf[key]
    report["versions"] |= gguf["versions"]
    if report["ours"]:
        raise VerificationError(
            f"the reader must import nothing of ours; it imported {report['ours'][0]}. Give an "
            "interpreter whose start-up files do not."
        )
    problems = report["problems"]
    if problems:
        raise VerificationError(_mismatch(folder, manifest, report))
    payload = _payload(folder, manifest)
    return VerificationReport(
        format=manifest["export"]["format"],
        payload_sha256=payload,
        num_tensors=report["tensors"],
        num_quantized=sum(
            len(entry.get("linears", (entry,)))
            for entry in manifest["tensors"].values()
            if entry["quantized"]
        ),
        logit_difference=report["logits"]["difference"],
        logit_statistic=manifest["probe"].get("logit_statistic", "max"),
        logit_tolerance=manifest["probe"]["logit_tolerance"],
        argmax_agreement=report["logits"]["argmax_agreement"],
        layer_difference=report["layers"] and report["layers"]["difference"],
        layer_tolerance=report["layers"] and report["layers"]["tolerance"],
        tokenizer=report["tokenizer"],
        gguf_tensors=gguf["tensors"],
        reader_versions=report["versions"],
        seconds=time.monotonic() - start,
    )


def seconds_allowed(folder: Path, manifest: dict) -> float:
    """Return how long the reader of an export may take, from the size of the export."""
    weights = sum(math.prod(entry["shape"]) for entry in manifest["tensors"].values())
    size = payload_bytes(folder)
    return SECONDS_TO_START + size / BYTES_PER_SECOND + weights / WEIGHTS_PER_SECOND


def reader_python(folder: Path, root: Path) -> Path:
    """Return the interpreter that reads the export: ours, or for gptq the one below ``root``.

    An interpreter that does not exist is named all the same; `verify_export` refuses it.

    Raises:
        InputError: The folder is not an export, or the environment of the interpreter was begun and
            not completed.
    """
    if read_manifest(folder)["export"]["format"] != "gptq":
        return Path(sys.executable)
    python = root / GPTQ_READER / "bin" / "python"
    if python.is_file() and not (root / GPTQ_READER_DONE).is_file():
        raise InputError(
            f"gptq is read in a complete {GPTQ_READER}; the making of {python.parents[1]} was "
            "interrupted: run `make reader-gptq`."
        )
    return python


def read_manifest(folder: Path) -> dict:
    """Return what ``normtweak.json`` of an export says.

    Raises:
        InputError: The folder is not an export.
        VerificationError: The file is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"an export folder holds {MANIFEST}; {folder} does not. Give the folder that an "
            "export was written to."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VerificationError(f"{path} must be JSON; {error}. Export again.") from error
    if not isinstance(manifest, dict) or not {"export", "tensors", "probe"} <= manifest.keys():
        raise InputError(
            f"{path} must be the manifest of an export; it lacks what one holds. Give the folder "
            "that an export was written to."
        )
    return manifest


def _payload(folder: Path, manifest: dict) -> str:
    """Return the payload's hash, whose recorded files the reader has found unchanged.

    Raises:
        VerificationError: It is not the recorded one.
    """
    hashes = file_hashes(folder)
    payload = hash_lines(hashes)
    if payload != manifest["payload_sha256"]:
        added = sorted(hashes.keys() - manifest["files"].keys())
        why = f"{', '.join(added)} was added" if added else f"{MANIFEST} was altered"
        raise VerificationError(
            f"the payload of {folder} must have the hash {manifest['payload_sha256']}; it has "
            f"{payload}, although every recorded file is unchanged: {why}. Export again."
        )
    return payload


def _read_gguf(folder: Path, manifest: dict, timeout: float) -> dict:
    """Return what the reader of the GGUF file wrote, where there is such a file to read.

    One that is absent or whose tensors no manifest names, is told by the other reader or by nobody.
    """
    entry = manifest.get("consumers", {}).get("llama.cpp", {})
    if "tensors" not in entry or not (folder / entry["file"]).is_file():
        return {"problems": [], "ours": [], "versions": {}, "tensors": None}
    return _run_reader(GGUF_READER, folder, sys.executable, timeout)


def _run_reader(script: Path, folder: Path, python: str | Path, timeout: float) -> dict:
    """Return what a reader wrote."""
    with scratch_folder("verify") as scratch:
        result = scratch / "report.json"
        # -I: no user site, no PYTHON* variables, and neither folder of ours on the path.
        command = [python, "-I", script, folder.resolve(), result, str(os.getpid())]
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise VerificationError(
                f"the reader must finish within {timeout:g} s; it did not. {LONGER}, or look at "
                "what else the machine is doing."
            ) from error
        if done.returncode or not result.is_file():
            lines = done.stderr.strip().splitlines() or ["it wrote nothing"]
            log.error("reader of %s:\n%s", folder.name, done.stderr)
            raise VerificationError(
                f"the reader must open {folder}; it ended with code {done.returncode}: "
                f"{lines[-1]}{_changes_in_words(folder)}"
            )
        return json.loads(result.read_text(encoding="utf-8"))


def _mismatch(folder: Path, manifest: dict, report: dict) -> str:
    """Return a sentence that names the checks that failed, the first problems, and what to do."""
    problems = report["problems"]
    failed = Counter(problem["what"] for problem in problems)
    checks = ", ".join(f"{what} ({count})" for what, count in failed.items())
    # One of each check first: many of one kind would hide the others.
    first = [next(p for p in problems if p["what"] == what) for what in failed]
    ordered = first + [problem for problem in problems if problem not in first]
    shown = "; ".join(_describe(problem) for problem in ordered[: max(SHOWN, len(first))])
    rest = len(problems) - max(SHOWN, len(first))
    more = f"; and {rest} more" if rest > 0 else ""
    return (
        f"an independent reader finds something else in {folder}: checks that fail: {checks}: "
        f"{shown}{more}. {_advice(folder, failed, manifest, report)}"
    )


def changed_files(folder: Path) -> dict[str, str]:
    """Return what became of files since they were written: gone, altered or added.

    Of the payload, and of what other programs open, such as a GGUF file.
    """
    manifest, found = read_manifest(folder), file_hashes(folder)
    consumers = manifest.get("consumers", {}).values()
    others = {one["file"]: one["sha256"] for one in consumers if "sha256" in one}
    found |= {name: file_sha256(folder / name) for name in others if (folder / name).is_file()}
    recorded = manifest["files"] | others
    changes = {name: "altered" for name in recorded.keys() & found.keys()}
    changes |= {name: "gone" for name in recorded.keys() - found.keys()}
    changes |= {name: "added" for name in found.keys() - recorded.keys()}
    return {
        name: change
        for name, change in sorted(changes.items())
        if recorded.get(name) != found.get(name)
    }


def require_as_written(folder: Path, to_be: str) -> None:
    """Accept an export whose files are those that were written.

    Args:
        folder: The export.
        to_be: What shall be done with it, as a participle.

    Raises:
        VerificationError: One was altered, added or removed since.
    """
    for name, change in changed_files(folder).items():
        raise VerificationError(
            f"the files of {folder} must be those that were written, to be {to_be}; {name} was "
            f"{change} since: export again."
        )


def files_of_export(folder: Path) -> list[str]:
    """Return the relative paths of what belongs to an export and is there.

    That is the payload, manifest, card, terms, probe, what other programs open, and a signature;
    not reports, and nothing that somebody has put beside it.
    """
    manifest = read_manifest(folder)
    names = [*file_hashes(folder), MANIFEST, MODEL_CARD, PROBE, SIGNATURE]
    names += [one["file"] for one in manifest.get("consumers", {}).values() if one.get("file")]
    names += [path.name for pattern in LEGAL_FILES for path in folder.glob(pattern)]
    return sorted({name for name in names if (folder / name).is_file()})


def _changes_in_words(folder: Path) -> str:
    """Return the first changes of a folder as the end of a sentence; nothing without any."""
    told = [f"{name} was {change}" for name, change in changed_files(folder).items()]
    return f". Since it was written {', '.join(told[:SHOWN])}: export again." if told else ""


def _advice(folder: Path, failed: Counter, manifest: dict, report: dict) -> str:
    """Return what can help: another export only where this one was altered."""
    if failed["file"]:
        return "Files were altered since they were written: export again."
    if changes := _changes_in_words(folder):
        return changes.removeprefix(". ")
    if failed["tokenizer"]:
        return "The tokenizer is not the one the model was calibrated with: restore it."
    written = manifest.get("versions", {})
    names = sorted(report["versions"].keys() & written.keys())
    here, there = (
        ", ".join(f"{name} {versions[name]}" for name in names)
        for versions in (report["versions"], written)
    )
    if here == there:
        return (
            "The files are as they were written, and so are the versions: another export would "
            "give the same. This is a fault of normtweak or of the reader: report it."
        )
    return f"The files are as they were written, by {there}; the reader has {here}: use those."


def _describe(problem: dict) -> str:
    name, found = problem["name"], _short(problem["found"])
    if "expected" not in problem:
        return f"{problem['what']} of {name}: {found}"
    return f"{problem['what']} of {name}: expected {_short(problem['expected'])}, found {found}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:16]}…"
