"""What a run's adapter changes, for its report: a sentence on what stands out, and the strength of each layer as a picture."""

from collections.abc import Iterator
from pathlib import Path

from ..adapters.analysis import analyse
from ..adapters.findings import sentence
from ..adapters.metadata import file_name
from ..errors import AnimaError
from .heat_map import heat_map
from .markup import Html, tag
from .pictures import data_uri
from .story import Story


def effect(run: Story) -> Iterator[Html]:
    """Yield the sentence and the heat-map; why there is none for a file that is not as it was saved, nothing for no file."""
    name = file_name(run.adapter)
    path = next((place for place in (Path(run.adapter), run.folder.parent / name) if name and place.is_file()), None)
    if path is None:
        return
    try:
        found = analyse(path)
    except AnimaError as error:
        yield tag("p", f"What it changes cannot be measured: {str(error).replace(str(path), name)}")
        return
    picture, said = heat_map(found), sentence(found)
    size = {"width": picture.width, "height": picture.height}
    yield tag("p", said)
    image = tag("img", src=data_uri(picture, "PNG"), alt=f"Strength by block and kind of layer. {said}", **size)
    yield tag("div", image, class_="map")
