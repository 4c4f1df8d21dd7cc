"""Bit-by-bit packing with Python integers: shares no code with what it checks."""


def pack_row(codes, bits):
    """Words of one row: one big integer, code i at bit i * bits, cut into signed 32-bit words."""
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    words = []
    for _ in range(-(-len(codes) * bits // 32)):
        word = stream & 0xFFFFFFFF
        words.append(word - 2**32 if word >= 2**31 else word)
        stream >>= 32
    return words


def unpack_row(words, bits, length):
    """Codes of one row."""
    stream = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    return [(stream >> (i * bits)) & (2**bits - 1) for i in range(length)]
