"""Sub-commands of the command-line program, one module each; `cli` puts them together."""
