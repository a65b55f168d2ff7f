"""One pair of scans from files to files, and the ways to other programs."""
