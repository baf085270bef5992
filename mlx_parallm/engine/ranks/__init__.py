"""One model over several processes: every rank runs the same loop on the same events.

Rank 0 has the server. What enters its engine (events.py) goes to the others once a turn, as data,
and with it what was measured and how much memory is left. So all ranks plan the same steps, and
the parts of the model that they hold meet in MLX's collectives only.
"""
