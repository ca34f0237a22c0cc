"""Philox4x32-10 in plain Python integers, after section 3.3 of Salmon et al. (SC 2011)."""

WORD = 2**32


def block(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Four words from a counter of four words and a key of two."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(a * 0xD2511F53, WORD)
        high1, low1 = divmod(c * 0xCD9E8D57, WORD)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return a, b, c, d


def blocks(seed: int, offset: int, count: int) -> list[int]:
    """`count` words of stream `seed` from block `offset` on."""
    words: list[int] = []
    while len(words) < count:
        counter = (offset % WORD, offset // WORD, 0, 0)
        words += block(counter, (seed % WORD, seed // WORD))
        offset += 1
    return words[:count]
