"""What the commands show and do: options, the run on files, the live conversation, its screen and its recordings."""
