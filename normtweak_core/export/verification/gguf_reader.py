"""Opens the GGUF file of an export with the package beside llama.cpp: a script by itself.

It runs in a fresh, isolated process (``python -I gguf_reader.py FOLDER RESULT PARENT``) and imports
the standard library, numpy and gguf, nothing of the package that wrote the folder. RESULT receives
JSON, whose ``problems`` are empty where every tensor is, dequantized, the one that was written.
"""

import ctypes
import hashlib
import importlib.metadata
import json
import os
import signal
import sys
from pathlib import Path

import gguf

PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
OUR_PACKAGES = ("normtweak_core", "tasks", "flows")


def check_tensors(path, expected, problems):
    """Compare type, shape and values of every tensor; return how many there were."""
    left, count = dict(expected), 0
    for tensor in gguf.GGUFReader(path).tensors:
        entry = left.pop(tensor.name, None)
        if entry is None:
            problems.append({"what": "gguf", "name": tensor.name, "found": "not ours"})
            continue
        wanted = [entry["type"], *entry["shape"]]
        found = [tensor.tensor_type.name, *map(int, reversed(tensor.shape))]
        if found == wanted:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)  # float32
            found, wanted = hashlib.sha256(values).hexdigest(), entry["sha256"]
        if found != wanted:
            problems.append(
                {"what": "gguf", "name": tensor.name, "expected": wanted, "found": found}
            )
        count += 1
    problems.extend({"what": "gguf", "name": name, "found": "no such tensor"} for name in left)
    return count


def main(folder, result, parent):
    """Write what was found to ``result``; end as soon as the parent does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started the reader is gone")
    manifest = json.loads((folder / "normtweak.json").read_text(encoding="utf-8"))
    entry, problems, count = manifest["consumers"]["llama.cpp"], [], 0
    try:
        count = check_tensors(folder / entry["file"], entry["tensors"], problems)
    except Exception as error:  # whatever a file that is no GGUF leads to
        found = f"{type(error).__name__}: {error}"
        problems.append({"what": "gguf", "name": entry["file"], "found": found})
    report = {
        "problems": problems,
        "tensors": count,
        "versions": {"gguf": importlib.metadata.version("gguf")},
        "ours": sorted(name for name in sys.modules if name.split(".")[0] in OUR_PACKAGES),
    }
    result.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
