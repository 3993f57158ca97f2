"""Who is who: signing keys, mask keys and the roster of a federation."""
