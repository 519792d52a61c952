"""Names of cards, as drivers and people write them."""

import pytest

from anima_core.errors import SettingError
from anima_core.speed.cards import CARDS, GB, GIB, card_of_text, find_card


@pytest.mark.parametrize(
    "name, gib, found",
    [
        ("NVIDIA GeForce RTX 3060", 11.75, "RTX 3060 12 GB"),
        ("NVIDIA GeForce RTX 3060", 7.8, "RTX 3060 8 GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "RTX 4060 TI 16 GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.7, "RTX 4070 TI SUPER 16 GB"),
        ("NVIDIA GeForce RTX 4070", 11.6, "RTX 4070 12 GB"),
        ("NVIDIA GeForce RTX 5090", 31.4, "RTX 5090 32 GB"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "A100 80 GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100 40 GB"),
        ("NVIDIA H100 80GB HBM3", 79.2, "H100 80 GB"),
        ("NVIDIA H200", 139.8, "H200 141 GB"),
    ],
)
def test_a_drivers_name_and_its_memory_are_a_card(name, gib, found):
    assert str(find_card(name, gib * GIB)) == found


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4060 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 PCIe",
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 3070 with Max-Q Design",
        "AMD Radeon RX 7900 XTX",
        "Intel(R) Arc(TM) A770 Graphics",
        "cpu",
    ],
)
def test_another_card_of_a_like_name_is_not_taken_for_it(name):
    """Its rates are others."""
    assert find_card(name, 16 * GIB) is None


@pytest.mark.parametrize(
    "text, found",
    [
        ("rtx 3060 12gb", "RTX 3060 12 GB"),
        ("RTX4070TiSuper", "RTX 4070 TI SUPER 16 GB"),
        ("4060 ti 8 GB", "RTX 4060 TI 8 GB"),
        ("geforce rtx 5080", "RTX 5080 16 GB"),
        ("h200", "H200 141 GB"),
    ],
)
def test_people_write_it_shorter(text, found):
    assert str(card_of_text(text)) == found


def test_memory_alone_is_a_card_of_unknown_rates():
    card = card_of_text("12gb")
    assert (card.gib, card.tflops) == (12, 0) and 11 * GB < card.usable < 12 * GB


def test_a_card_that_is_not_in_the_table_is_refused_with_those_that_are():
    with pytest.raises(SettingError, match="card='rtx 3060': .* rtx 3060 12 gb, rtx 3060 8 gb"):
        card_of_text("rtx 3060")
    with pytest.raises(SettingError, match="card='voodoo 2': not in the table; give its memory alone, such as 12gb"):
        card_of_text("voodoo 2")


def test_every_card_is_found_by_its_own_name():
    assert [card_of_text(str(card)) for card in CARDS] == list(CARDS)


def test_a_card_on_eight_lanes_has_half_the_link():
    assert card_of_text("rtx 4060 ti 16gb").link * 2 == card_of_text("rtx 4070").link == card_of_text("12gb").link
