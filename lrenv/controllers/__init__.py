"""What an agent is, how one is found by name, and the files that agents are kept in."""
