"""Whether an export holds the codes of the checkpoint that it was made from."""

from pathlib import Path

import torch

from normtweak_core.errors import VerificationError
from normtweak_core.export.exported import exported_weights
from normtweak_core.export.foreign.base import BaseWeights
from normtweak_core.export.verification.verify import read_manifest


def require_codes_kept(folder: Path, base: BaseWeights) -> int:
    """Return how many linears of an export have the codes and zero points of a checkpoint.

    Those are all of the checkpoint's: scales may have been trained, nothing else.

    Raises:
        VerificationError: One has others.
    """
    written = exported_weights(folder, read_manifest(folder))
    for name in base.linears:
        ours, theirs = written.linear(base.stored_name(name)), base.linear(name)
        same = torch.equal(ours.codes, theirs.codes) and torch.equal(ours.zeros, theirs.zeros)
        order = (ours.g_idx is None) == (theirs.g_idx is None) and (
            ours.g_idx is None or torch.equal(ours.g_idx, theirs.g_idx)
        )
        if not (same and order):
            raise VerificationError(
                f"the export must have the codes of {base.folder}; those of {name} in {folder} are "
                "others. This is a fault of normtweak: report it."
            )
    return len(base.linears)
