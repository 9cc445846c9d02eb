"""`dreamer4 bench`: how fast this machine is, and how much of that is used."""
