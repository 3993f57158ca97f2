"""What a site makes for itself of the shared model; nothing of it leaves the site."""
