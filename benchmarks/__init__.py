"""One file a question, each runnable alone (`python -m benchmarks.NAME`) and by `tfgen bench NAME`.

A benchmark is a module here with a function `main`, which reads sys.argv; the first line of its
docstring is its question. Installed, this folder is the package `tfgen_benchmarks`.
"""
