"""``python -m tensorlib.launch`` is ``tlrun``."""

import sys

from tensorlib.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
