"""Deal a gzipped JSON Lines file out to sites, in turn: what each bank has from the start."""

import gzip
import sys
from pathlib import Path

source, folder, *sites = sys.argv[1:]
with gzip.open(source, "rt", encoding="utf-8") as stream:
    lines = stream.readlines()
for number, site in enumerate(sites):
    (Path(folder) / f"{site}.jsonl").write_text("".join(lines[number :: len(sites)]))
