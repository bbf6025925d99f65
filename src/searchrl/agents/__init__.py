"""Search agents: the episode record, the tag protocol, and one file per method."""
