"`python -m resnotes` is the command `resnotes`"
import sys
from resnotes.cli import main

sys.exit(main())
