"""Settings of the pictures and captions."""

from dataclasses import dataclass

from . import captions
from .setting import check, require, setting


@dataclass(frozen=True)
class SubsetConfig:
    """One folder of captioned pictures. Caption options apply in the order in which they stand here."""

    image_dir: str = setting(help="A folder of captioned pictures.", path="read")
    num_repeats: int = setting(
        1, "How often each picture comes in an epoch; sub-folders named N_words have their own number.", low=0
    )
    folder_numbers: bool = setting(  # what it leads to, draws and captions, is compared as the data, and so for is_reg
        True,
        "Whether sub-folders named N_words are what is trained: N draws of each picture, 0 switches one off, the words are the "
        "caption of its pictures that have none.",
        resume="free",
        shapes=False,
    )
    is_reg: bool = setting(
        False,
        "Regularisation pictures: as many draws in an epoch as their dataset's other pictures have, repeated or cut.",
        resume="free",
        shapes=False,
    )
    caption_extension: str = setting(
        ".txt",
        "Ending of the caption files. With .txt also .caption files are found; .json reads captions by category, and text "
        "files where there is none.",
    )
    caption_sources: tuple[str, ...] = setting(
        (),
        "Endings of several caption files of a picture with weights, as .txt=2 .nl.txt=1: each draw takes one of those that "
        "are there. Empty: `subset.caption_extension` alone counts.",
    )
    metadata_file: str = setting(
        "",
        "kohya's JSON file of captions (meta_cap.json), instead of caption files; it also says which pictures count.",
        path="read",
    )
    class_tokens: str = setting("", "Caption of pictures that have no caption file.")
    caption_dropout_rate: float = setting(
        0.0, "Chance that a picture trains without its caption. 0.05 to 0.1 helps guidance.", low=0, high=1
    )
    enable_wildcard: bool = setting(
        False, "Draw one line of a caption file each time, and one of a, b and c for {a|b|c} in a caption."
    )
    caption_prefix: str = setting("", "Text before every caption, such as a trigger word.")
    caption_suffix: str = setting("", "Text after every caption.")
    caption_replace: tuple[str, ...] = setting(
        (),
        "Renames of tags: old => new, or re:pattern => new, which also changes sentences. With nothing on the right the tag is "
        "left out.",
    )
    caption_blacklist: tuple[str, ...] = setting((), "Tags that are always left out, or patterns as re:pattern.")
    caption_trigger: str = setting(
        "", "Trigger words, which stand first in every caption that has them nowhere else, and are never shuffled or left out."
    )
    caption_separator: str = setting(",", "Separator of the tags of a caption, also where they are joined again.")
    keep_tokens: int = setting(0, "How many leading tags keep their place (1 for a trigger word).", low=0)
    keep_tokens_separator: str = setting("", "Mark within captions: the tags before it keep their place, however many.")
    shuffle_caption: bool = setting(False, "Shuffle the tags of each caption in every epoch. For tag lists, not sentences.")
    caption_tag_dropout_rate: float = setting(
        0.0, "Chance that a tag is left out; a tag that keeps its place never is.", low=0, below=1
    )
    category_shuffle: tuple[str, ...] = setting(
        (),
        f"Categories whose tags are shuffled, with a chance as artist=0.5 or always: {', '.join(captions.ORDER)}. What is "
        "named wins over `subset.shuffle_caption`, which is about appearance, general and environment.",
    )
    category_dropout: tuple[str, ...] = setting(
        (),
        "Chance that a tag is left out, by category, as artist=0.3 or nl=0.5 (nl: all sentences). What is named wins over "
        "`subset.caption_tag_dropout_rate`; the tags of text captions are general.",
    )
    caption_order: tuple[str, ...] = setting(
        (), "Categories of JSON captions in another order than Anima's own; those that are not named follow in Anima's."
    )
    secondary_separator: str = setting(
        "", "Text that becomes `subset.caption_separator` in the end: tags that it joins stay together until then."
    )
    flip_aug: bool = setting(False, "Mirror half of the draws. Not for lettering or anything asymmetric.")
    alpha_mask: bool = setting(False, "Weigh the loss by the transparency of the pictures.")
    mask_dir: str = setting(
        "",
        "A folder of grey pictures that weigh the loss, named as the pictures, or with _mask or -masklabel behind.",
        path="read",
    )
    loss_weight: float = setting(1.0, "Weight of this folder's loss: below 1 for regularisation pictures.", low=0)
    validation_split: float = setting(
        0.0,
        "Share of this folder's pictures that is held out of training and only measured; 0: as the run says.",
        low=0,
        high=1,
    )
    validation_split_num: int = setting(
        0, "How many pictures are held out, together with folders of the same number, instead of a share.", low=0
    )
    validation_seed: int = setting(-1, "Seed of the draw of this folder's held-out pictures; -1: `held_out.seed`.", low=-1)
    random_crop: bool = setting(
        False,
        "Crop pictures that are larger than their bucket at a place of its own in each epoch, not in the centre; four places "
        "are usual, and all are cached.",
    )
    min_timestep: float = setting(
        0.0, "Least noise that this folder is trained at, as t: draws are squeezed into the range from it.", low=0, below=1
    )
    max_timestep: float = setting(
        1.0, "Most noise that this folder is trained at, as t: draws are squeezed into the range up to it.", above=0, high=1
    )
    timestep_offset: float = setting(
        0.0,
        "Moves this folder's t before the sigmoid: below 0 less noise, for close-ups and detail, above 0 more, for whole "
        "figures and composition; -1 to 1 is usual.",
        low=-20,
        high=20,
    )

    def __post_init__(self) -> None:
        require(bool(self.image_dir), "subset.image_dir", repr(self.image_dir), "name a folder of captioned pictures")
        check(self)
        ordered = self.min_timestep <= self.max_timestep
        rule = f"must not be above `subset.max_timestep`={self.max_timestep:g}"
        require(ordered, "subset.min_timestep", f"{self.min_timestep:g}", rule)
        one_way = not (self.validation_split and self.validation_split_num)
        rule = "cannot be with `subset.validation_split`; set one of them"
        require(one_way, "subset.validation_split_num", self.validation_split_num, rule)
        _ = (self.weights, self.order, self.renames, self.blacklist, self.rates)  # to read one that is wrong refuses it

    @property
    def varies(self) -> bool:
        """Tell whether the same picture meets different captions, beyond dropping the caption as a whole."""
        return self.varies_tags or self.enable_wildcard or len(self.caption_sources) > 1

    @property
    def varies_tags(self) -> bool:
        return any(map(any, self.rates.values()))

    @property
    def changes_tags(self) -> bool:
        """Tell whether a text caption is taken apart at its separators."""
        return self.varies_tags or bool(self.caption_replace or self.caption_blacklist or self.caption_trigger)

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Return the chances of each category: that its tags are shuffled, and that one of them is left out."""
        return captions.chances(
            self.shuffle_caption, self.caption_tag_dropout_rate, self.category_shuffle, self.category_dropout
        )

    @property
    def weights(self) -> dict[str, float]:
        """Return how often which of a picture's caption files is drawn, by ending; empty where one counts alone."""
        return captions.weights(self.caption_sources, "subset.caption_sources")

    @property
    def order(self) -> tuple[str, ...]:
        return captions.in_order(self.caption_order, "subset.caption_order")

    @property
    def renames(self) -> tuple[captions.Rule, ...]:
        return captions.renames(self.caption_replace, "subset.caption_replace")

    @property
    def blacklist(self) -> tuple[captions.Rule, ...]:
        return captions.blacklist(self.caption_blacklist, "subset.caption_blacklist")


@dataclass(frozen=True)
class DatasetConfig:
    """Folders that share resolutions, buckets and batch size. Sizes are pixels."""

    subsets: tuple[SubsetConfig, ...]
    resolutions: tuple[tuple[int, int], ...] = setting(
        ((1024, 1024),),
        "Size of the pictures: 1024 means about a million pixels in any shape. Several, such as 768,1024, train every picture "
        "at each.",
    )
    batch_size: int = setting(1, "Pictures in one batch. More is steadier and takes more memory.", low=1)
    enable_bucket: bool = setting(
        True, "Sort pictures into sizes of their own aspect ratio; off crops all of them to the resolution."
    )
    min_bucket_reso: int = setting(256, "Shortest side of a bucket, px.", low=16)
    max_bucket_reso: int = setting(4096, "Longest side of a bucket, px.")  # kohya's 1024 would cap both sides of a 1024 run
    bucket_reso_steps: int = setting(64, "Sides of buckets are multiples of this, px: 64, or another multiple of 16.", low=16)
    bucket_no_upscale: bool = setting(
        False, "Train small pictures at their own size, cut down to multiples of `dataset.bucket_reso_steps`, not enlarged."
    )

    def __post_init__(self) -> None:
        check(self)
        require(len(self.subsets) > 0, "subset.image_dir", "()", "name at least one folder of pictures")
        require(len(self.resolutions) > 0, "dataset.resolutions", "()", "name at least one resolution")
        for width, height in self.resolutions:
            size = f"{width}x{height}"
            require(min(width, height) >= 64, "dataset.resolutions", size, "sides must be at least 64 px")
            fits = self.enable_bucket or (width % 16 == 0 and height % 16 == 0)  # with buckets only the area counts
            require(fits, "dataset.resolutions", size, "sides must be multiples of 16, or turn `dataset.enable_bucket` on")
        steps_ok = self.bucket_reso_steps % 16 == 0
        require(steps_ok, "dataset.bucket_reso_steps", self.bucket_reso_steps, "must be a multiple of 16")
        in_order = self.min_bucket_reso <= self.max_bucket_reso
        rule = f"must not be below `dataset.min_bucket_reso`={self.min_bucket_reso}"
        require(in_order, "dataset.max_bucket_reso", self.max_bucket_reso, rule)
