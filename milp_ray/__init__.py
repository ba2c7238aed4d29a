"""milp_ray: a memory for every user of a language model, its placement searched per user.

Importing this package is cheap on purpose: torch, transformers, Ray and Ax are imported by the
parts that use them, when they are used.
"""

__version__ = "0.1.0"
