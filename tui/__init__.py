"""The dashboard: a terminal view of a state directory, in a process of its own.

It reads through `etl.state.read.reader` and asks a live run for something through `etl.state.commands`; whatever
happens to it, the run goes on.
"""
