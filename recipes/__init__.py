"""Six recipes for secure and private machine learning, each of which attacks its own claim."""

import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m recipes.…` still imports its recipe: until its command line takes over, Ctrl-C ends it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
