"""How the embedded models were made: the sprite world and the training scripts.

Nothing outside this folder imports it.
"""
