"""All that tfmeta needs of other libraries and that is not public there, each with its reason.

`of_keras` and `of_tensorflow` hold the private names. `derivatives` holds the functions that are
replaced while a learner is traced. `tests/test_foreign.py` fails by the name of what a release has
taken away.
"""
