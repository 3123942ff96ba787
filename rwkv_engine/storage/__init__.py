"""Atomic replacement of files and directories, memory-mapped files, and JSON files."""
