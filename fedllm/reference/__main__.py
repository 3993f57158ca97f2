"""Write the page of all keys and the schemas anew: ``make reference``."""

from __future__ import annotations

import sys
from pathlib import Path

from fedllm.files import write_bytes
from fedllm.reference.kinds import FILE_KINDS
from fedllm.reference.page import page
from fedllm.reference.schema import schema_file, schema_text

if __name__ == "__main__":
    write_bytes(Path(sys.argv[1]), page().encode())
    for kind in FILE_KINDS:
        write_bytes(schema_file(kind), schema_text(kind).encode())
