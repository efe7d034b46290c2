"""What `ubend` does for people: one file per subcommand, one function call each."""
