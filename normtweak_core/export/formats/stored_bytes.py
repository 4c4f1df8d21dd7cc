"""What a linear on a grid takes in a file, as the formats lay it out; no torch."""

WORD = 32  # bits
FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def num_words(length: int, bits: int) -> int:
    """Return how many 32-bit words a row of ``length`` codes fills, padding included."""
    return -(-length * bits // WORD)


def linear_bytes(
    form: str,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    dtype: str,
    rows: int,
    columns: int,
    mixed: bool = False,
    block: int | None = None,
) -> dict[str, int]:
    """Return the bytes of the tensors that stand for one linear, its bias left out.

    Args:
        form: compressed-tensors or gptq.
        bits: Of a code.
        group_size: Columns per scale; None: the whole row.
        symmetric: Whether there are no zero points.
        dtype: The export dtype, in which scales are.
        rows: Outputs.
        columns: Inputs.
        mixed: Whether other linears of the model have other widths.
        block: Of a Conv1D: inputs that share a stored scale; None: it is a linear.
    """
    number, word = FLOAT_BYTES[dtype], WORD // 8
    groups = columns // (group_size or columns)
    if form == "gptq":
        return {
            "qweight": num_words(columns, bits) * rows * word,
            "qzeros": groups * num_words(rows, bits) * word,
            "scales": groups * rows * number,
            "g_idx": columns * word,
        }
    if block is not None:
        groups = columns // block
        zeros = {} if symmetric else {"weight_zero_point": groups * rows}
        return zeros | {
            "weight_packed": columns * num_words(rows, bits) * word,
            "weight_scale": groups * rows * number,
            "weight_shape": 2 * 8,
        }
    parts = {
        "weight_packed": rows * num_words(columns, bits) * word,
        "weight_scale": rows * groups * number,
        "weight_shape": 2 * 8,
    }
    if not symmetric and mixed:
        parts["weight_zero_point"] = rows * groups
    elif not symmetric:
        parts["weight_zero_point"] = num_words(rows, bits) * groups * word
    return parts
