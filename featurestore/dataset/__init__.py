"""Data sets: tables of samples whose identity is the digest of their bytes.

::

    dataset     the Dataset itself                   folder      samples in a folder
    options     how a folder or table is scanned     table       samples listed in a table
    samples     listed samples, rows as columns      table_file  CSV, Parquet, DataFrames as tables
    merge       one row per digest, in order         arrays      samples in memory
    splits      train, val, test: listed or drawn    scan        digests and verdicts, in threads
    labels      one type for all labels              scan_cache  verdicts of earlier scans
    problems    problems and their lines             source      bytes of a path or URI
    review      problems of the whole data set       naming      names, and commands that scan again
    manifest    the Parquet form                     summary     counts of a scan's report
    stored      a data set of a store                opening     which scan a source needs
    augmentation    views of training images         frame       the listed images as pandas
"""

from featurestore.dataset.dataset import Dataset
from featurestore.dataset.options import ScanOptions
from featurestore.dataset.problems import Problem, problem_lines
from featurestore.dataset.scan import Scanned
from featurestore.dataset.splits import SPLITS, Split, Splits

__all__ = [
    "SPLITS",
    "Dataset",
    "Problem",
    "ScanOptions",
    "Scanned",
    "Split",
    "Splits",
    "problem_lines",
]
