"""Compares the library with its peers, in one run: `python3 dev.py bench`. See docs/performance.md."""
