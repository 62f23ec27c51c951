"""Each method written out in plain NumPy, in float64 and for one trainee, as its paper has it.

Nothing here imports lrenv. Each file is named in the docstring of the module that it checks, and used by the tests of
that module. Where lrenv adds to a paper, the file says so.
"""
