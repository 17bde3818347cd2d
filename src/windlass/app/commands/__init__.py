"""The commands of the command line, one file each. Every file has `register(app)`."""
