"""What an export was made with: packages, code, machine. What differs here is why bytes may differ.

The record is written into the manifest of an export by the run that writes its files, and goes from
there to the registry: a later run that finds the export finished says nothing else about it.
"""

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.engine.caching import CORE, module_exists, source_hashes
from tasks.engine.environment import REPOSITORY

MANIFEST_KEY = "made_with"
OURS = "normtweak"  # its code is known by its hashes
CODE_FOLDERS = ("flows", "tasks", "normtweak_core")
# They choose among kernels whose sums come in another order.
ARITHMETIC_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
INSTRUCTIONS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile"),
    *("asimd", "bf16", "i8mm", "sve"),
)
NONE = "none"


class MadeWith(BaseModel, frozen=True):
    """Everything besides recipe, model and data that can change a byte of an export."""

    python: str
    system: str  # with the version of its C library
    machine: str
    processor: str
    instructions: list[str]  # of those that kernels are chosen by
    device: str  # "cpu", or the name of the GPU
    threads: int
    variables: dict[str, str]  # set ones of ARITHMETIC_VARIABLES
    commit: str | None  # of this repository; None: it is not a clone
    changed: bool  # files of that commit had been edited
    sources: dict[str, str]  # module of the core -> SHA-256 of its file
    packages: dict[str, str]  # installed name -> version

    def requirements(self) -> str:
        """Return the environment as a requirements file: exact versions, sorted, a line each."""
        return "".join(f"{name}=={version}\n" for name, version in sorted(self.packages.items()))


class Difference(BaseModel, frozen=True):
    """A fact that was recorded otherwise than it is here."""

    fact: str
    recorded: str
    here: str

    def __str__(self) -> str:
        """Return the difference as a line."""
        return f"{self.fact}: {self.recorded} recorded, {self.here} here"


def made_with(job: Any, modules: Iterable[str]) -> MadeWith:
    """Return what stages are computed with."""
    return made_with_modules(job, source_hashes(tuple(sorted(modules))))


def made_with_modules(job: Any, sources: dict[str, str]) -> MadeWith:
    """Return what a job is computed with where these are its modules.

    Args:
        job: Model and machine.
        sources: Hashes by module; only those of the core count.
    """
    commit, changed = _commit(REPOSITORY)
    processor, instructions = _processor(Path("/proc/cpuinfo"))
    return MadeWith(
        python=platform.python_version(),
        system=" ".join((platform.system(), *platform.libc_ver())).strip(),
        machine=platform.machine(),
        processor=processor,
        instructions=instructions,
        device=_device_name(job.device),
        threads=job.threads,
        variables={name: os.environ[name] for name in ARITHMETIC_VARIABLES if name in os.environ},
        commit=commit,
        changed=changed,
        sources={name: digest for name, digest in sources.items() if _is_core(name)},
        packages=_packages(),
    )


def made_here(job: Any, recorded: MadeWith) -> MadeWith:
    """Return what the recorded stages would be computed with on this machine.

    Args:
        job: Model and machine.
        recorded: Names the modules to look for; one that is not here any more has no hash.
    """
    there = tuple(name for name in sorted(recorded.sources) if module_exists(name))
    return made_with_modules(job, source_hashes(there))


def differences(recorded: MadeWith, here: MadeWith) -> list[Difference]:
    """Return every fact that is not as recorded: machine first, then code, then packages."""
    single = ("python", "system", "machine", "processor", "device", "threads")
    found = [(name, getattr(recorded, name), getattr(here, name)) for name in single]
    pair = (" ".join(recorded.instructions) or NONE, " ".join(here.instructions) or NONE)
    found.append(("instructions", *pair))
    found += _by_name("variable", recorded.variables, here.variables)
    found.append(("commit", _named_commit(recorded), _named_commit(here)))
    found += _by_name("code", _short(recorded.sources), _short(here.sources))
    found += _by_name("package", recorded.packages, here.packages)
    return [
        Difference(fact=fact, recorded=str(old), here=str(new))
        for fact, old, new in found
        if old != new
    ]


def code_commit() -> str | None:
    """Return the commit of this repository; None: it is not a clone."""
    return _commit(REPOSITORY)[0]


def _by_name(
    kind: str, recorded: dict[str, str], here: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    for name in sorted(recorded.keys() | here.keys()):
        yield f"{kind} {name}", recorded.get(name, NONE), here.get(name, NONE)


def _short(hashes: dict[str, str]) -> dict[str, str]:
    return {name: digest[:12] for name, digest in hashes.items()}


def _named_commit(one: MadeWith) -> str:
    if one.commit is None:
        return NONE
    return f"{one.commit} with changes" if one.changed else one.commit


def _is_core(module: str) -> bool:
    return module.partition(".")[0] in CORE


@functools.cache
def _packages() -> dict[str, str]:
    """Return the installed packages but our own, by their normalized names."""
    found: Iterable[importlib.metadata.Distribution] = importlib.metadata.distributions()
    # The first of a name on the path is the one that is imported.
    packages: dict[str, str] = {}
    for one in found:
        packages.setdefault(one.metadata["Name"].lower().replace("_", "-"), one.version)
    packages.pop(OURS, None)
    return dict(sorted(packages.items()))


@functools.cache
def _commit(repository: Path) -> tuple[str | None, bool]:
    """Return the commit of a clone, and whether files of our packages are not as it has them."""

    def git(*arguments: str) -> str | None:
        # Inside a hook of git these variables name another repository.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "--no-optional-locks", "-C", str(repository), *arguments]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
        except OSError:  # no git here
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    # Installed below another repository, such as into an environment inside it, we are no clone.
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != repository.resolve():
        return None, False
    return git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *CODE_FOLDERS) != ""


@functools.cache
def _processor(cpuinfo: Path) -> tuple[str, list[str]]:
    """Return the processor's name, and which of `INSTRUCTIONS` it has."""
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return platform.processor() or "unknown", []
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    name = facts.get("model name") or platform.processor() or "unknown"
    return name, [one for one in INSTRUCTIONS if one in flags]


def _device_name(device: str) -> str:
    if device == "cpu":
        return device
    import torch

    return torch.cuda.get_device_name(device)
