"""The ground: errors, files that are whole or absent, cores, a renderer, intervals."""
