"""Who downloads and decodes for the fetch stage.

hands     what the stage needs of them, and this machine's own
cluster   those of a cluster: which node is asked for what, and what comes back
team      the nodes that take part: how they come, are asked and are lost
ray       a Ray cluster: where actors are started, asked and ended
node      what runs in an actor, on a node; knows nothing of Ray
wire      what travels between the two
"""
