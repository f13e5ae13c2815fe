"""``python -m edgevlm``, where the console script is not on the path."""

import sys

from edgevlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
