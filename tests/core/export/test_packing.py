"""The bit stream: exact for every width and awkward size, and the layout other packers use."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from normtweak_core.export.formats.packing import num_words, pack_rows, unpack_rows
from tests.reference_packing import pack_row, unpack_row

WIDTHS = (2, 3, 4, 8)
LENGTHS = (1, 5, 10, 11, 16, 31, 32, 33, 64, 100, 172)


def random_codes(generator, rows, length, bits):
    return torch.randint(2**bits, (rows, length), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_packing_agrees_with_the_bit_by_bit_oracle_and_back(bits, length, seeded):
    codes = random_codes(seeded(length), 3, length, bits)
    words = pack_rows(codes, bits)
    assert words.dtype == torch.int32
    assert words.tolist() == [pack_row(row.tolist(), bits) for row in codes]
    assert [unpack_row(row, bits, length) for row in words.tolist()] == codes.tolist()
    assert torch.equal(unpack_rows(words, bits, length), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_is_what_compressed_tensors_packs(bits, seeded):
    codes = random_codes(seeded(bits), 7, 77, bits)
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack_rows(codes, bits), pack_to_int32(signed, bits))


@pytest.mark.parametrize("bits", WIDTHS)
def test_extreme_codes_survive(bits):
    for value in (0, 2**bits - 1):
        codes = torch.full((2, 65), value, dtype=torch.uint8)
        assert torch.equal(unpack_rows(pack_rows(codes, bits), bits, 65), codes)


def test_three_bit_codes_straddle_words_as_drawn():
    codes = torch.zeros((1, 32), dtype=torch.uint8)
    codes[0, 10] = 0b111  # two bits in word 0, one in word 1
    codes[0, 21] = 0b111  # one bit in word 1, two in word 2
    words = [word & 0xFFFFFFFF for word in pack_rows(codes, 3)[0].tolist()]
    assert words == [0b11 << 30, (1 << 31) | 1, 0b11]


def test_32_codes_fill_exactly_as_many_words_as_bits():
    assert [num_words(32, bits) for bits in WIDTHS] == list(WIDTHS)
    assert num_words(33, 3) == 4


def test_codes_are_not_modified(seeded):
    codes = random_codes(seeded(), 2, 40, 4)
    before = codes.clone()
    pack_rows(codes, 4)
    assert torch.equal(codes, before)


def test_a_code_that_does_not_fit_is_refused():
    codes = torch.tensor([[1, 8]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="codes of 3 bits must be below 8; got 8"):
        pack_rows(codes, 3)


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="bits must be one of 2, 3, 4, 8; got 5"):
        pack_rows(torch.zeros((1, 4), dtype=torch.uint8), 5)


def test_too_few_words_are_refused():
    words = torch.zeros((1, 3), dtype=torch.int32)
    with pytest.raises(ValueError, match="33 codes of 3 bits need 4 words; found 3"):
        unpack_rows(words, 3, 33)
