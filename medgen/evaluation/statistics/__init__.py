"""Numbers and intervals, computed without networks."""
