import sys

from speech_xl.cli import main

sys.exit(main())
