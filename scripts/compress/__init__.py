"""What the numbered scripts share: importable, no argparse, no printing."""

import sys

# transformers imports torchao wherever it is installed: three seconds and 100 MB for every process. None means "not
# there" to Python's import system; compress.model takes it back for the variants that torchao makes.
sys.modules.setdefault("torchao", None)
