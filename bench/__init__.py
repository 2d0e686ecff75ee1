"""Measures the library beside its peers, in one run: `python3 dev.py bench`. See docs/performance.md."""
