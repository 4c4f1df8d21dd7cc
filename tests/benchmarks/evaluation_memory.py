"""Peak memory of a paired evaluation by depth: two whole models, and both walked block by block.

    python -m tests.benchmarks.evaluation_memory [--depths 2 4 8 16] [--hidden 768]

Random Llamas in float32, and their exports of 4 bits in groups of 64; every number is the peak
above the start of a process of its own, in MiB.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.memory import fresh_process, reset_peak, rss_bytes
from tests.benchmarks.results import DEFAULT_OUT, machine, write_results

WINDOWS, LENGTH, VOCABULARY = 2, 128, 512
WAYS = ("whole models", "block by block")


def main() -> None:
    """Measure both ways at every depth and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WAY"))
    options = parser.parse_args()
    if options.child:
        print(peak(Path(options.child[0]), options.child[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="normtweak-memory-") as folder:
        for depth in options.depths:
            place = made(Path(folder) / str(depth), depth, options.hidden)
            found = [
                float(fresh_process(__spec__.name, ["--child", str(place), way], {}).output)
                for way in WAYS
            ]
            rows.append([depth, *found])
            print(rows[-1], flush=True)
    header = ["blocks", *(f"{way}, MiB" for way in WAYS)]
    facts = {"machine": machine(), "hidden": options.hidden, "vocabulary": VOCABULARY}
    facts |= {"windows": WINDOWS, "length": LENGTH}
    facts["rows"] = [dict(zip(header, row, strict=True)) for row in rows]
    print(write_results(DEFAULT_OUT, "evaluation-memory", facts, header, rows))


def made(folder: Path, depth: int, hidden: int) -> Path:
    """Return a folder with a random model and its export."""
    from normtweak_core.export.config import ExportConfig
    from normtweak_core.export.writer import write_export
    from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "vocab_size": VOCABULARY}
    config = tiny_config("llama", num_hidden_layers=depth, max_position_embeddings=512, **sizes)
    model = save_tiny_model(folder / "model", config)
    layers = quantize_all(model, 4, 64, True)
    write_export(folder / "export", model, layers, {}, ExportConfig(dtype="float16"))
    return folder


def peak(folder: Path, way: str) -> float:
    """Return the peak above the start, in MiB."""
    from normtweak_core.evaluate.divergence import compare
    from normtweak_core.evaluate.predictions import walked
    from normtweak_core.export.loading import load_export, stream_export
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.model.streaming import StreamedModel

    model, export, dtype = folder / "model", folder / "export", torch.float32
    random = torch.Generator().manual_seed(0)
    windows = torch.randint(VOCABULARY, (WINDOWS, LENGTH), generator=random)

    def measured() -> None:
        if way == WAYS[0]:
            pair = (load_export(export, model, dtype, "cpu"), load_causal_lm(model, dtype, "cpu"))
        else:
            streamed = (
                stream_export(export, model, dtype, "cpu"), StreamedModel(model, dtype, "cpu")
            )  # fmt: skip
            pair = (walked(one, windows) for one in streamed)
        compare(*pair, windows)

    reset_peak()
    before = rss_bytes()
    measured()
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(lines["VmHWM"].split()[0]) / 1024 - before / 2**20, 1)


if __name__ == "__main__":
    main()
