"""The dashboard: a terminal view of a state directory, in a process of its own.

It reads through `etl.state.queries` and asks a live run for something through `etl.state.control`; whatever
happens to it, the run goes on.
"""
