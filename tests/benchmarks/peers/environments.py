"""The environments that the tools run in, made from exact pins when they are first needed."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.results import REPOSITORY

PEERS = REPOSITORY / ".peers"  # ignored by git; may be a link
LOCKS = Path(__file__).parent


@dataclass(frozen=True)
class Environment:
    """Packages that one tool runs with."""

    name: str
    lock: Path | None  # exact pins of all packages; None: those of this process

    def python(self) -> Path:
        """Return the interpreter of the environment, which is made where it is not whole.

        Raises:
            CalledProcessError: pip could not install the pins; it has told why on standard error.
        """
        if self.lock is None:
            return Path(sys.executable)
        folder = PEERS / self.name
        wanted = hashlib.sha256(self.lock.read_bytes()).hexdigest()
        done, python = folder / ".complete", folder / "bin" / "python"
        if not done.is_file() or done.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            # Every package is pinned, and what gptqmodel asks for does not fit beside this torch.
            pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", self.lock]
            subprocess.run(pip, check=True)
            done.write_text(wanted)
        return python


OURS = Environment("normtweak", None)
LLM_COMPRESSOR = Environment("llm-compressor", LOCKS / "llm-compressor.lock")
AUTOROUND = Environment("autoround", LOCKS / "autoround.lock")
GPTQMODEL = Environment("gptqmodel", REPOSITORY / "requirements-reader-gptq.lock")
