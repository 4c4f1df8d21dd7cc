"""What to do about a model that gives NaN on a text: its float type has a range."""

import torch

WIDER = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32"}
ELSEWHERE = "normtweak evaluate and compare take --dtype"


def beyond(dtype: torch.dtype, key: str = "export.dtype") -> str:
    """Return what a person can do about numbers that are not finite."""
    if dtype not in WIDER:
        return "Check its weights."
    name = str(dtype).removeprefix("torch.")
    return (
        f"It computes in {name}, whose range this text leaves: set {key} to {WIDER[dtype]} "
        f"({ELSEWHERE}), or measure on another text."
    )
