"""Captions of the class that the pictures' subject belongs to, and what a dataset has for prior preservation."""

from collections.abc import Sequence

from ..errors import SettingError
from ..settings import PriorConfig
from .folder import Picture
from .latents import has_mask


def class_caption(caption: str, prior: PriorConfig) -> str | None:
    """Return a caption with the class in the place of the trigger; None where that asks for nothing that could be kept.

    So it is where the caption lacks the trigger, or would stay the same: the picture itself teaches what belongs to that one.
    As in ai-toolkit each occurrence is replaced, letter by letter, and without a trigger the whole caption.
    """
    if not prior.weight:
        return None
    if not prior.trigger:
        found = prior.class_words
    elif prior.trigger in caption:
        found = caption.replace(prior.trigger, prior.class_words).strip(" ,\n")
    else:
        return None
    return None if found == caption else found


def check_prior(prior: PriorConfig, pictures: Sequence[Sequence[Picture]]) -> list[str]:
    """Say what of prior preservation has no effect on the pictures. Raises SettingError where no caption has the trigger."""
    every, said = [picture for group in pictures for picture in group], prior.warnings()
    if prior.masked and not any(map(has_mask, every)):
        said.append(f"`prior.masked`={prior.masked:g} has no effect: no picture has a mask (`subset.mask_dir`)")
    own = [picture.whole_captions for picture in every if not picture.subset.is_reg]
    without = [captions for captions in own if all(class_caption(caption, prior) is None for caption in captions)]
    if not prior.weight or not without:
        return said
    what = f"`prior.trigger`={prior.trigger!r}: " if prior.trigger else f"`prior.class_words`={prior.class_words!r}: "
    lack = "do not have it in their caption" if prior.trigger else "have no other caption"
    if len(without) == len(own):
        raise SettingError(f"{what}all {len(own)} pictures {lack}; write it as it stands in the captions, or leave it empty")
    return [*said, f"{what}{len(without)} of {len(own)} pictures {lack}, so they keep nothing of the class"]
