"""People rank sampled answers at a site, and how far they agree; nothing of it leaves the site."""
