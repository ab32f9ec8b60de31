"""Token counts as people write them."""

import pytest

from autolora import AutoloraError
from autolora.capture.tokens import Tokens, powers_of_two


@pytest.mark.parametrize(
    ("given", "counts", "ranged"),
    [
        (2048, (2048,), False),
        ([2048, 512, 2048], (512, 2048), False),
        (range(8, 25, 8), (8, 16, 24), False),
        ("2048", (2048,), False),
        ("1024, 512", (512, 1024), False),
        ("512:4096", (512, 1024, 2048, 4096), True),
        ("500:2100", (500, 512, 1024, 2048, 2100), True),
        ("7:7", (7,), False),
        ("16:48:16", (16, 32, 48), False),
        ("16:50:16", (16, 32, 48), False),
        ("3,512:1024", (3, 512, 1024), True),
        ("1:2147483647", (*(1 << n for n in range(31)), 2**31 - 1), True),
    ],
)
def test_valid_token_counts(given, counts, ranged):
    tokens = Tokens.of(given)
    assert (tokens.counts, tokens.ranged) == (counts, ranged)


@pytest.mark.parametrize(
    "given",
    ["", "0", "-5", "1.5", "many", "512:", ":512", "1:2:3:4", "512:1024:0", "1,,2", "9" * 5000, "²",
     0, -1, [], [8, -1], 1.5, True, [True], None, 2**31, ["8"]],
)  # fmt: skip
def test_invalid_token_counts(given):
    with pytest.raises(AutoloraError, match="tokens must be") as caught:
        Tokens.of(given)
    assert "LOW:HIGH" in str(caught.value)


def test_an_empty_range_and_one_that_is_too_long():
    with pytest.raises(AutoloraError, match="'2048:512' is empty: 2048 is more than 512"):
        Tokens.of("2048:512")
    with pytest.raises(AutoloraError, match="has 2147483647 counts; at most 100000 are allowed"):
        Tokens.of("1:2147483647:1")


def test_no_tokens_are_false():
    assert not Tokens()
    assert Tokens.of(1)


@pytest.mark.parametrize(
    ("low", "high", "counts"),
    [
        (1, 1, (1,)),
        (5, 5, (5,)),
        (1, 2, (1, 2)),
        (4, 16, (4, 8, 16)),
        (3, 20, (3, 4, 8, 16, 20)),
        (513, 8191, (513, 1024, 2048, 4096, 8191)),
    ],
)
def test_powers_of_two(low, high, counts):
    assert powers_of_two(low, high) == counts
