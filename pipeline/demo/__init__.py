"""The demo: scenes made from a seed, their renderer, the data written of them, teachers trained on them, their weights.

Nothing in `sak` or `pipeline` imports it: `sak.errors` reaches its teachers and weights by their names.
"""
