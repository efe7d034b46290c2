"""What is wrong with a data set: one function per check, each of which returns findings."""
