"""Data sets: tables of samples whose identity is the digest of their bytes.

::

    dataset     the Dataset itself                   table       samples listed in a table
    sample      the bytes and pixels of one row      folder      samples in a folder
    splits      train, val, test: given or drawn     arrays      samples in memory
    labels      one type; classes and targets        scan        digests and verdicts, in threads
    rows        one row per digest, in order         scan_cache  what earlier scans found
    problems    what users should know               source      bytes of a path or URI
    manifest    the Parquet form                     naming      names, and the scan command
    summary     what a scan reports
"""

from featurestore.dataset.dataset import Dataset
from featurestore.dataset.problems import Problem, problem_lines
from featurestore.dataset.scan import Scanned
from featurestore.dataset.splits import SPLITS, Split, Splits

__all__ = ["SPLITS", "Dataset", "Problem", "Scanned", "Split", "Splits", "problem_lines"]
