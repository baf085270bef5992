"""Options: texts to values, the command line, and the flags of other servers.

`mlx_parallm.settings` puts them together and is the only one that reads the outside.
"""
