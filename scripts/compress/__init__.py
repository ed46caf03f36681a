"""What the numbered scripts share: importable, no argparse, no printing."""

import gc
import sys

# By default Python looks for garbage so often that a quarter of the time that transformers takes to import goes there.
gc.set_threshold(100_000)

# transformers imports torchao wherever it is installed: three seconds and 100 MB for every process. None means "not
# there" to Python's import system; compress.model takes it back for the variants that torchao makes.
sys.modules.setdefault("torchao", None)
