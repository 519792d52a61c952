"""Settings of the pictures and captions."""

from dataclasses import dataclass

from .setting import check, require, setting


@dataclass(frozen=True)
class SubsetConfig:
    """One folder of captioned pictures. Caption options apply in the order in which they stand here."""

    image_dir: str = setting(help="A folder of captioned pictures.", path="read")
    num_repeats: int = setting(1, "How often each picture comes in an epoch.", low=1)
    caption_extension: str = setting(".txt", "Ending of the caption files.")
    class_tokens: str = setting("", "Caption of pictures that have no caption file.")
    caption_dropout_rate: float = setting(
        0.0, "Chance that a picture trains without its caption. 0.05 to 0.1 helps guidance.", low=0, high=1
    )
    caption_prefix: str = setting("", "Text before every caption, such as a trigger word.")
    caption_suffix: str = setting("", "Text after every caption.")
    caption_separator: str = setting(",", "Separator of the tags of a caption.")
    keep_tokens: int = setting(0, "How many leading tags keep their place (1 for a trigger word).", low=0)
    keep_tokens_separator: str = setting("", "Mark within captions: the tags before it keep their place, however many.")
    shuffle_caption: bool = setting(False, "Shuffle the tags of each caption in every epoch. For tag lists, not sentences.")
    caption_tag_dropout_rate: float = setting(
        0.0, "Chance that a tag is left out; a tag that keeps its place never is.", low=0, below=1
    )
    flip_aug: bool = setting(False, "Mirror half of the draws. Not for lettering or anything asymmetric.")
    alpha_mask: bool = setting(False, "Weigh the loss by the transparency of the pictures.")
    mask_dir: str = setting("", "A folder of grey pictures of the same names that weigh the loss.", path="read")
    loss_weight: float = setting(1.0, "Weight of this folder's loss: below 1 for regularisation pictures.", low=0)

    def __post_init__(self) -> None:
        require(bool(self.image_dir), "subset.image_dir", repr(self.image_dir), "name a folder of captioned pictures")
        check(self)

    @property
    def varies(self) -> bool:
        """Tell whether the same picture meets different captions, beyond dropping the caption as a whole."""
        return self.shuffle_caption or self.caption_tag_dropout_rate > 0


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
    bucket_reso_steps: int = setting(64, "Sides of buckets are multiples of this, px: 16, 32, 48 or 64.")
    bucket_no_upscale: bool = setting(False, "Train small pictures at their own size instead of enlarging them.")

    def __post_init__(self) -> None:
        check(self)
        require(len(self.subsets) > 0, "subset.image_dir", "()", "name at least one folder of pictures")
        require(len(self.resolutions) > 0, "dataset.resolutions", "()", "name at least one resolution")
        for width, height in self.resolutions:
            size = f"{width}x{height}"
            require(min(width, height) >= 64, "dataset.resolutions", size, "sides must be at least 64 px")
            require(width % 16 == 0 and height % 16 == 0, "dataset.resolutions", size, "sides must be multiples of 16")
        steps_ok = self.bucket_reso_steps in (16, 32, 48, 64)
        require(steps_ok, "dataset.bucket_reso_steps", self.bucket_reso_steps, "must be 16, 32, 48 or 64")
        in_order = self.min_bucket_reso <= self.max_bucket_reso
        rule = f"must not be below `dataset.min_bucket_reso`={self.min_bucket_reso}"
        require(in_order, "dataset.max_bucket_reso", self.max_bucket_reso, rule)
