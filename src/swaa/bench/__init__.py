"""Timing of attention, prefill, decode, memory and training, each beside its floor: the work behind `swaa bench`.

One module a subcommand; each yields its rows one by one, so that a run that is cut short keeps those it has.
"""
