"""What the numbered scripts share: importable, no argparse, no printing."""
