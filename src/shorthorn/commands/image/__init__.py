"""`shorthorn image`: backing images for machines and for people at a shell."""
