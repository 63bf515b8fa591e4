"""What captioning and fetching on a Ray cluster share.

connection   joining and leaving it, one connection for both
nodes        which nodes there are, and what became of those whose actors died
directory    where an actor puts its files
"""
