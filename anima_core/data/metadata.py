"""What an adapter file says of the pictures that it was trained on, in sd-scripts' form, which LoRA managers read.

Of a folder only its last name is told, and of captions only tags, counted.
"""

import json
from collections import Counter
from collections.abc import Sequence

from .batches import Item
from .folder import Picture
from .tags import tags_of

MOST_TAGS = 2000  # of all folders together, the most frequent: a header is read whole whenever a list is shown
TOLD_FOLDERS = 200


def data_metadata(items: Sequence[Item], with_tags: bool = True) -> dict[str, str]:
    """Return the counts of pictures, buckets and tags of a run's data."""
    pictures = {item.picture.path: item.picture for item in items}
    found = {
        "ss_num_train_images": str(len(items)),
        "ss_num_pictures": str(len(pictures)),
        "ss_bucket_info": json.dumps(bucket_info(items)),
        "ss_dataset_dirs": json.dumps(folders(items)),
    }
    return found | (
        {"ss_tag_frequency": json.dumps(tag_frequency([*pictures.values()]), ensure_ascii=False)} if with_tags else {}
    )


def bucket_info(items: Sequence[Item]) -> dict[str, object]:
    """Return {"buckets": {"0": {"resolution": [width, height], "count": draws}}, "mean_img_ar_error": of width / height}."""
    counts = Counter(item.bucket for item in items)
    once = {(item.picture.path, item.bucket): item for item in items}.values()
    errors = [abs(item.bucket[0] / item.bucket[1] - item.picture.size[0] / item.picture.size[1]) for item in once]
    buckets = {str(n): {"resolution": list(size), "count": counts[size]} for n, size in enumerate(sorted(counts))}
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / max(len(errors), 1)}


def folders(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    """Return {folder: {"n_repeats": of a picture, "img_count": pictures}}."""
    pictures = {item.picture.path: item.picture for item in items}.values()
    counts = Counter(picture.folder.name for picture in pictures)
    repeats = {picture.folder.name: picture.repeats for picture in pictures}
    return {name: {"n_repeats": repeats[name], "img_count": count} for name, count in counts.most_common(TOLD_FOLDERS)}


def tag_frequency(pictures: Sequence[Picture]) -> dict[str, dict[str, int]]:
    """Return {folder: {tag: in how many captions it stands}}, the most frequent tags first and within bounds."""
    counts = Counter((picture.folder.name, tag) for picture in pictures for tag in tags_of(picture))
    found: dict[str, dict[str, int]] = {}
    for (folder, tag), count in counts.most_common(MOST_TAGS):
        found.setdefault(folder, {})[tag] = count
    return found
