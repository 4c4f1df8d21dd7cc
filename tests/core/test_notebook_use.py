"""The core alone, as in a notebook: no engine, no registry, from a folder to a quantized folder."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.children import QUICK

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
NOTEBOOK = """
import json, sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from normtweak_core.calibration.text import cut_windows
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.float_type import resolve_export_dtype
from normtweak_core.export.writer import write_export
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.source import resolve_source
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig

source, out = sys.argv[1:]
folder = resolve_source(ModelConfig(source=source)).path
dtype = resolve_export_dtype(ExportConfig(), folder)
text = "It was a dark and stormy night; the rain fell in torrents. " * 12
windows = cut_windows([text], AutoTokenizer.from_pretrained(folder), 32)

walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), windows)
streams, layers, norms = walk.start(), {}, {}
for index in range(walk.num_blocks):
    settings = QuantizationConfig(bits=4, group_size=16), NormTweakConfig()
    plan = BlockPlan(index, walk.num_blocks, *settings, dtype)
    block = quantize_block(walk.load(index), streams, walk.runner(index), plan)
    streams, prefix = block.streams, walk.model.block_prefix(index)
    layers |= {f"{prefix}.{name}": weight for name, weight in block.layers.items()}
    norms |= {f"{prefix}.{name}": norm for name, norm in block.norms.items()}
write_export(Path(out), folder, layers, norms, ExportConfig(), dtype=dtype)

with torch.no_grad():
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    stock, walked = loaded(windows).logits, walk.model.head(streams.x_q)
    plain = walk.model.head(streams.x_f)
print(json.dumps({
    "layers": len(layers),
    "tokenizer": AutoTokenizer.from_pretrained(out)(text).input_ids[:32] == windows[0].tolist(),
    "stock_from_walked": ((stock - walked).norm() / walked.norm()).item(),
    "walked_from_float": ((walked - plain).norm() / plain.norm()).item(),
    "packages": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


def test_the_core_alone_takes_a_folder_to_an_export_that_transformers_loads(tiny_folders, tmp_path):
    source, out = tmp_path / "float", tmp_path / "quantized"
    source.mkdir()
    for file in tiny_folders["llama"].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    a_tokenizer().save_pretrained(source)
    found = run_alone(NOTEBOOK, source, out)
    assert found["layers"] == 3 * 7
    assert found["tokenizer"]
    # What stock transformers computes is what the walk saw, up to rounding of embeddings and head.
    assert found["stock_from_walked"] < 2e-3 < found["walked_from_float"] < 0.3
    assert not {"prefect", "mlflow", "pandera", "flows", "tasks"} & set(found["packages"])


def test_what_the_page_shows_of_the_library_runs(tmp_path):
    page = PAGE.read_text()
    call, parts = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "notebook").mkdir()
    program = with_fewer(call, "samples=64, length=256", "samples=8, length=64, final_tune=False")
    program += with_fewer(parts, "samples, length = 64, 256", "samples, length = 8, 64")
    program += """
import json
from normtweak_core.export.payload import payload_sha256
print(json.dumps(compare(quantized, model, others).metrics() | {
    "bits": record.bits_per_weight,
    "source": result.report.calibration.source,
    "hashes": [payload_sha256(Path("llama-w3g64")), record.payload_sha256],
    "packages": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""
    found = run_alone("import sys\n" + program, tmp_path / "notebook")
    assert found["bits"] == pytest.approx(3.3, abs=0.1)
    assert 1 < found["perplexity/ratio"] < 1.2
    assert found["source"] == "generated"
    assert found["hashes"][0] == found["hashes"][1]  # the call and the loop by hand
    assert not {"prefect", "mlflow", "pandera", "flows", "tasks"} & set(found["packages"])


def with_fewer(program, shown, fewer):
    """Return what the page shows, made quick."""
    assert shown in program
    return program.replace(shown, fewer)


def test_importing_the_package_imports_neither_torch_nor_pydantic():
    code = "import sys, normtweak_core; print({'torch', 'pydantic'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def a_tokenizer():
    """One token a character, for the 96 ids of the tiny models."""
    characters = [*map(chr, range(ord(" "), ord("~") + 1)), "\n"]
    vocabulary = {character: i for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def run_alone(program, *arguments):
    """Run a program in a process of its own and return the JSON value it printed last."""
    command = [sys.executable, "-c", QUICK + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=arguments[0].parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
