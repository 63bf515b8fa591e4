"""Who downloads and decodes for the fetch stage.

base      what the stage needs of a backend, and this machine's own
remote    the backend that is a cluster: which node is asked for what, and what comes back
peers     its worker pool: how nodes are registered, monitored, asked and lost
ray       a Ray cluster: where actors are started, asked and ended
node      what runs in an actor, on a node; knows nothing of Ray
wire      what travels between the two
"""
