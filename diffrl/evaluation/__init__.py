"""Judges any policy by LIBERO's protocol, ours and those behind a server."""
