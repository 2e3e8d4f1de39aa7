"""Training: a corpus of two-channel conversations from a readable script, and the language model on top of it.

Needs the `train` extra (`pip install '.[train]'`); nothing here is imported at run time.
"""
