import sys

from .cli import main

if __name__ == "__main__":  # data workers and launchers import this module again
    sys.exit(main())
