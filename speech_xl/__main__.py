"""`python -m speech_xl`: the program without an installation."""

import sys

from speech_xl.cli import main

sys.exit(main())
