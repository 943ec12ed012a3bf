"""One file per command; each parses, calls one function of packer.api, and prints."""
