"""What a lesson needs around its subject; its cells use `specnb.lesson` and `specnb.notebook`.

The names here are for lessons that take any pair (pair.py), and for the
one on long texts (long.py). `specnb.notebook` has the others: the
set-up (setup.py), parameters (config.py), prompts (prompts.py), what is shown (panel.py), what is
kept (results.py), and the address of the project (address.py).
"""

from specnb.lesson.long import lending_pair, long_items
from specnb.lesson.pair import by_task, chosen, drafter, items, methods, own, remarks

__all__ = [
    "by_task",
    "chosen",
    "drafter",
    "items",
    "lending_pair",
    "long_items",
    "methods",
    "own",
    "remarks",
]
