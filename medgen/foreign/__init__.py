"""Safe readers of files of other projects, which run nothing in them."""
