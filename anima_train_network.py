"""sd-scripts' program of this name: the same as `python -m anima_core train`, also under `accelerate launch`."""

import sys

from anima_core.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
