"""The model card of an export: what it is, and how to load it."""

from typing import TYPE_CHECKING

from normtweak_core.export.compressed_tensors import MINIMUM_VERSION
from normtweak_core.export.scheme import Scheme

if TYPE_CHECKING:
    from normtweak_core.export.writer import ExportRecord

_CARD = """\
---
library_name: transformers
tags: [quantized, {bits}-bit, {form}]
---

# {title}

A causal language model with {bits}-bit linear layers ({grid}, {groups}); everything else is
{dtype}. Made by normtweak; `normtweak.json` holds the recipe, lineage and weight hashes.

| format | bits per quantized weight | size |
|---|---|---|
| {form} | {bits_per_weight:.3f} | {size:.2f} MB |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
```

Needs {needs}.
"""


def model_card(record: "ExportRecord") -> str:
    """Return the text of README.md."""
    scheme = record.scheme
    return _CARD.format(
        title=record.folder.name,
        bits=scheme.bits,
        form=record.format,
        grid="symmetric" if scheme.symmetric else "asymmetric",
        groups=f"groups of {scheme.group_size}" if scheme.group_size else "one scale per row",
        dtype=record.dtype,
        bits_per_weight=record.bits_per_weight,
        size=record.size_bytes / 1e6,
        needs=_needs(record.format, scheme),
    )


def _needs(form: str, scheme: Scheme) -> str:
    if form == "gptq":
        return "transformers, optimum and gptqmodel"
    reason = " (earlier releases lay 3-bit codes out differently)" if scheme.bits == 3 else ""
    version = MINIMUM_VERSION[scheme.bits]
    return f"transformers, accelerate and compressed-tensors {version} or newer{reason}"
