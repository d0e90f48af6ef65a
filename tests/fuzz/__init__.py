"""A fuzzer of everything that comes from outside: files of every kind, arguments, names and the environment.

A case follows from its kind, a seed and a number, so that it can be made again. It runs in a process of its own pool,
which a watchdog ends; nothing that a case does to its process is seen by more than the cases after it in that process.
``python -m tests.fuzz --help`` runs many by hand, ``test_fuzz.py`` a share with every other test.
"""
