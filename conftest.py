"""Puts the repository's root on the import path: `htc_model` is the package, not the folder tests/htc_model.

Without it the folder counts as a namespace package and hides `htc_model.training` behind
tests/htc_model/training.
"""
