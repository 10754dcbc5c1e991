"""Completion in a shell: scripts for bash, zsh and fish, and the words they offer."""
