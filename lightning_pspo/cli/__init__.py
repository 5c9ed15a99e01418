"""The command line: Lightning's subcommands and the project's own, one file each."""
