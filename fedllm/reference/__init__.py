"""What the keys of every kind of file are: for pages, editors, and whoever asks on a terminal."""
