"""Benchmarks: what `fastflow bench` and the repository's `benchmarks/` share.

`cases.py` is the registry of sizes, `published.py` the arithmetic that others run, `models.py` whole models, `check.py`
who is right, `timing.py` how long it takes, `rows.py` what is kept of it.
"""
