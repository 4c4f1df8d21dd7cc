"""The model card of an export: what it is, and how to load it."""

from collections.abc import Mapping
from typing import Any

import yaml

from normtweak_core.export.formats.compressed_tensors import MINIMUM_VERSION
from normtweak_core.export.formats.scheme import AnyScheme, MixedScheme, Scheme, TernaryScheme
from normtweak_core.export.gguf.error import error_in_words
from normtweak_core.export.origin import Origin, SourceCard
from normtweak_core.export.record import ExportRecord
from normtweak_core.model.hub import is_hub_id
from normtweak_core.vision.kinds import IMAGE_TEXT_CLASS, TEXT_CLASS

_CARD = """\
---
library_name: transformers
tags: [quantized, {tag}, {form}]
{head}---

# {title}

A {kind} with {linears}; everything else is
{dtype}. Made by normtweak; `normtweak.json` holds the recipe, lineage and weight hashes.
{origin}
| format | bits per quantized weight | size |
|---|---|---|
| {form} | {bits_per_weight:.3f} | {size:.2f} MB |

```python
{code}```

Needs {needs}.
{more}{terms}"""

_CODE = """\
from transformers import {model}, {reader}
{called} = {reader}.from_pretrained("PATH")
model = {model}.from_pretrained("PATH")
"""


def model_card(record: ExportRecord) -> str:
    """Return the text of README.md."""
    scheme = record.scheme
    ternary = isinstance(scheme, TernaryScheme)
    return _CARD.format(
        title=record.folder.name,
        kind=_kind(record),
        code=_CODE.format(
            model=IMAGE_TEXT_CLASS if record.image_windows is not None else TEXT_CLASS,
            reader="AutoProcessor" if record.image_windows is not None else "AutoTokenizer",
            called="processor" if record.image_windows is not None else "tokenizer",
        ),
        tag=_tag(scheme),
        form=record.format,
        linears=_ternary_linears(scheme) if ternary else _grid_linears(scheme),
        dtype=record.dtype,
        bits_per_weight=record.bits_per_weight,
        size=record.size_bytes / 1e6,
        needs=_ternary_needs() if ternary else _needs(record.format, scheme),
        head=_head(record),
        origin=_codes_from(record.origin) if record.origin else "",
        more=_llama_cpp(record.consumers) if record.consumers else "",
        terms=_terms(record.source),
    )


def _kind(record: ExportRecord) -> str:
    """Return what kind of model it is."""
    if record.image_windows is None:
        return "causal language model"
    images = record.image_windows
    on = f"{images} windows of an image and text" if images else "text alone"
    return (
        f"model that reads images and text, whose text tower was calibrated on {on}:\n"
        "vision tower and projector are as they were, and the text tower comes"
    )


def _tag(scheme: AnyScheme) -> str:
    """Return the tags that tell the width of weights, and of activations that are rounded."""
    if isinstance(scheme, TernaryScheme):
        return "ternary"
    if isinstance(scheme, MixedScheme):
        return "mixed-bit"
    rounded = scheme.activation_bits is not None
    return f"{scheme.bits}-bit" + f", w{scheme.bits}a{scheme.activation_bits}" * rounded


def _head(record: ExportRecord) -> str:
    """Return the lines that Hugging Face's hub reads: what it was made from, licence, languages."""
    source, origin = record.source, record.origin
    float_model = source.hub_id or (origin.float_model if origin else "")
    head: dict[str, Any] = {"quantized_by": "normtweak"}
    if is_hub_id(float_model):
        head |= {"base_model": float_model, "base_model_relation": "quantized"}
    if origin and origin.license:
        head["license"] = origin.license
    return yaml.safe_dump(source.head | head, sort_keys=False, allow_unicode=True)


def _terms(source: SourceCard) -> str:
    """Return what the float model's folder wants to be told of it."""
    files = ", ".join(f"`{name}`" for name in source.legal)
    told = f"\nThe terms of the float model hold: {files}.\n" if files else ""
    cited = "\n".join(f"```bibtex\n{entry}\n```\n" for entry in source.citations)
    return told + (f"\n## Citation of the float model\n\n{cited}" if cited else "")


def _codes_from(origin: Origin) -> str:
    told = f", licence {origin.license}" if origin.license else ""
    return (
        f"\nThe codes are those of `{origin.base}` (quantized by {origin.quantized_by}{told}),\n"
        f"made from `{origin.float_model}`; norms and scales may have been trained since.\n"
    )


def _grid_linears(scheme: Scheme | MixedScheme) -> str:
    grid = "symmetric" if scheme.symmetric else "asymmetric"
    groups = f"groups of {scheme.group_size}" if scheme.group_size else "one scale per row"
    if not isinstance(scheme, MixedScheme):
        bits = scheme.activation_bits
        reads = f"\nthat read {bits}-bit activations" if bits else ""
        return f"{scheme.bits}-bit linear layers ({grid}, {groups}){reads}"
    counts = ", ".join(f"{len(names)} of {bits} bits" for bits, names in scheme.by_width.items())
    return f"linear layers of mixed widths ({counts}; {grid}, {groups})"


def _ternary_linears(scheme: TernaryScheme) -> str:
    norm = ", an RMSNorm before each" if scheme.rms_norm else ""
    return f"ternary linear layers (-1, 0 and 1 times one scale{norm}) that read 8-bit activations"


def _ternary_needs() -> str:
    return (
        "transformers and accelerate. The first pass compiles for a while; with\n"
        "`TORCH_COMPILE_DISABLE=1` it does not"
    )


def _llama_cpp(consumers: Mapping[str, Any]) -> str:
    entry = consumers["llama.cpp"]
    if entry["file"] is None:
        return f"\nThere is no GGUF file for llama.cpp: {entry['reason']}.\n"
    text = "" if entry["tokenizer"] else " It holds no tokenizer: give it token ids."
    error = "" if (found := entry["error"]) is None else f" There {error_in_words(found)}."
    return f"\nllama.cpp opens `{entry['file']}` ({entry['type']}).{error}{text}\n"


def _needs(form: str, scheme: Scheme | MixedScheme) -> str:
    if form == "gptq":
        return "transformers, optimum and gptqmodel"
    widths = set(scheme.widths.values()) if isinstance(scheme, MixedScheme) else {scheme.bits}
    reason = " (earlier releases lay 3-bit codes out differently)" if 3 in widths else ""
    version = max(MINIMUM_VERSION[width] for width in widths)
    return f"transformers, accelerate and compressed-tensors {version} or newer{reason}"
