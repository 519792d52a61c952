"""Common cards: their memory and what they compute at best, for plans made away from them and for seconds that are told."""

import re
from dataclasses import dataclass

from ..errors import SettingError

GIB = 2**30
GB = 1e9
# What of a card's memory a run cannot have. The driver reports about 2 % less than the name says; CUDA's context with the
# kernels of torch and cuBLAS takes 0.4 to 0.6 GB (the difference that nvidia-smi shows); a desktop takes about 0.7 GB.
REPORTED = 0.98
CONTEXT = 0.5 * GB
DESKTOP = 0.7 * GB
# Of what is free, once torch is at work: gaps in its allocator's memory, about 6 % on top of what tensors take; and what
# libraries take for themselves and the screen may come to need.
FRAGMENTS = 1.06
SPARE = 0.3 * GB


@dataclass(frozen=True)
class Card:
    """name: what stands in the driver's name of it. gib: of memory. tflops: of dense bf16 with fp32 sums, 10^12 a second.

    bandwidth: GB a second. link: GB a second from page-locked memory of the host.
    """

    name: str
    gib: int
    tflops: float
    bandwidth: float
    link: float = 26

    @property
    def usable(self) -> float:
        """The bytes that a run can have where the card also draws a desktop."""
        return self.gib * GIB * REPORTED - CONTEXT - DESKTOP

    @property
    def flops(self) -> float:
        return self.tflops * 1e12

    @property
    def bytes_per_second(self) -> float:
        return self.bandwidth * GB

    @property
    def link_bytes(self) -> float:
        return self.link * GB

    def __str__(self) -> str:
        return f"{self.name.upper()} {self.gib} GB"


# Rates of GeForce cards: NVIDIA's whitepapers of GA102, AD102 and GB202: multiprocessors x 512 a clock, half of what they
# do with fp16 sums, x boost clock; measured 47.0 on a 5060 Ti. H100 and H200: products of large matrices as measured on an
# H200, four fifths of the data sheet's 989. Others: data sheets. Bandwidths: data sheets.
# Links: 26.8 was measured over 16 lanes of PCIe 4, 85 % of what they have; half of it for 8 lanes, twice for PCIe 5. A card
# in an older slot has less.
CARDS = (
    Card("rtx 3060", 12, 25.5, 360),
    Card("rtx 3060", 8, 25.5, 240),
    Card("rtx 3060 ti", 8, 32.4, 448),
    Card("rtx 3070", 8, 40.6, 448),
    Card("rtx 3070 ti", 8, 43.5, 608),
    Card("rtx 3080", 10, 59.5, 760),
    Card("rtx 3080", 12, 61.3, 912),
    Card("rtx 3080 ti", 12, 68.2, 912),
    Card("rtx 3090", 24, 71.2, 936),
    Card("rtx 3090 ti", 24, 80.0, 1008),
    Card("rtx 4060", 8, 30.2, 272, 13),
    Card("rtx 4060 ti", 8, 44.1, 288, 13),
    Card("rtx 4060 ti", 16, 44.1, 288, 13),
    Card("rtx 4070", 12, 58.3, 504),
    Card("rtx 4070 super", 12, 71.0, 504),
    Card("rtx 4070 ti", 12, 80.2, 504),
    Card("rtx 4070 ti super", 16, 88.2, 672),
    Card("rtx 4080", 16, 97.5, 717),
    Card("rtx 4080 super", 16, 104.4, 736),
    Card("rtx 4090", 24, 165.2, 1008),
    Card("rtx 5060", 8, 38.4, 448),
    Card("rtx 5060 ti", 8, 47.4, 448),
    Card("rtx 5060 ti", 16, 47.4, 448),
    Card("rtx 5070", 12, 61.7, 672, 50),
    Card("rtx 5070 ti", 16, 87.9, 896, 50),
    Card("rtx 5080", 16, 112.6, 960, 50),
    Card("rtx 5090", 32, 209.5, 1792, 50),
    Card("a100", 40, 312, 1555),
    Card("a100", 80, 312, 2039),
    Card("h100", 80, 790, 3350, 50),
    Card("h200", 141, 790, 4800, 50),
)
TYPICAL = Card("of the middle", 16, 88, 672)  # for ratios where the card is not known

SIZE = re.compile(r"(\d+)\s*gi?b\b")
# What tells apart cards of one number. A name that has one of these and a card that has not are two things.
KINDS = re.compile(r"ti|super|laptop|mobile|max|d|pcie|nvl")


def words(text: str) -> list[str]:
    """Split a name: "NVIDIA GeForce RTX 4070TiSuper" -> nvidia, geforce, rtx, 4070, ti, super."""
    text = SIZE.sub(" ", text.lower()).replace("super", " super")
    return re.findall(r"[a-z]+(?=\d{4})|[a-z]\d+|\d+|[a-z]+", text)


def find_card(name: str, total: float = 0) -> Card | None:
    """Return the card of a driver's name, or of a text that names one; None when it is not in the table.

    total: bytes of its memory, where known; of cards of one name the nearest is taken. A text may say it itself ("12gb").
    """
    named = words(name)
    kinds = {word for word in named if KINDS.fullmatch(word)}
    said = SIZE.search(name.lower())
    gib = int(said[1]) if said else total / GIB
    found = [
        card
        for card in CARDS
        if {word for word in words(card.name) if word != "rtx"} <= set(named) and kinds <= set(words(card.name))
    ]
    if said:
        found = [card for card in found if card.gib == gib]
    return min(found, key=lambda card: abs(card.gib - gib), default=None) if gib or len(found) == 1 else None


def card_of_text(text: str, setting: str = "card") -> Card:
    """Return the card that a user names; "12gb" alone is one of that size whose rates are not known. Raises SettingError.

    setting: where it was named, for the error.
    """
    found, said = find_card(text), SIZE.search(text.lower())
    if found is not None:
        return found
    if said and not words(text):
        return Card("card", int(said[1]), 0, 0)
    same = [card for card in CARDS if set(words(text)) - {"rtx", "geforce", "nvidia"} & set(words(card.name))]
    known = ", ".join(dict.fromkeys(str(card).lower() for card in same or CARDS))
    raise SettingError(f"{setting}={text!r}: not in the table; give its memory alone, such as 12gb, or one of {known}")
