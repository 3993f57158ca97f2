"""What lies on a disk for nobody but its owner: sealed files and logs, their keys, re-keying."""
