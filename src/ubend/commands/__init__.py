"""The command line, by what its commands are for. Nothing heavy is imported before one of them runs."""
