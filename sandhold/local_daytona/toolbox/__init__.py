"""The program inside each sandbox: PID 1, standard library only, never imported with anything else.

It runs with `python -I -S` from a read-only mount, so nothing here may import from the rest of the package.
"""
