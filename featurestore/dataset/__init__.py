"""Data sets: tables of samples whose identity is the digest of their bytes.

::

    dataset         the Dataset itself             listing   what a folder lists
    options         how it was scanned             table     what a CSV or Parquet table lists
    sample          the bytes of one row           arrays    samples in memory
    merge           one row a digest, in order     labels    one type; classes and targets
    scan, index     digests and verdicts           split     train, val, test: drawn or given
    source          bytes of a path or URI         manifest  the Parquet form
    summary         what a scan reports            notes    look-alike labels, small splits
"""

from featurestore.dataset.dataset import Dataset
from featurestore.dataset.merge import Problem, problem_lines
from featurestore.dataset.scan import Scanned
from featurestore.dataset.split import Splits

__all__ = ["Dataset", "Problem", "Scanned", "Splits", "problem_lines"]
