"""Mathematics that the systems share; each file is one idea."""
