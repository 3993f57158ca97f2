"""What runs at a site: the ClientApp and its ways to find the site's records and keys."""
