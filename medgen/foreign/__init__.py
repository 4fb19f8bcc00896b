"""Files of other projects, read as data: nothing in them is run."""
