"""Keys to sign with, and a small real export to sign."""

from pathlib import Path

import torch
from cryptography.hazmat.primitives import serialization

from normtweak_core import quantize
from tests.tiny_exports import save_tiny_model, tiny_config

PEM = serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def write_key(folder, name, key, password=None):
    """The private half as NAME.pem, the public one as NAME.pub."""
    sealed = serialization.NoEncryption()
    if password:
        sealed = serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.pem").write_bytes(key.private_bytes(PEM, form, sealed))
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(PEM, SPKI))


def write_export(folder: Path) -> Path:
    """Quantize a tiny Llama; return the export."""
    save_tiny_model(folder / "model", tiny_config("llama"))
    off = {"norm_tweak": {"enabled": False}, "final_tune": {"enabled": False}}
    ids = torch.randint(0, 128, (8, 16), generator=torch.Generator().manual_seed(0))
    made = quantize(str(folder / "model"), bits=4, group_size=32, calibration=ids, **off)
    made.save(folder / "export")
    return folder / "export"
