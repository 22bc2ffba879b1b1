"""The results file: HDF5, written atomically, read with numpy and h5py alone."""

from prunekit.results.format import FORMAT, FORMAT_VERSION
from prunekit.results.reader import Results, open_results
from prunekit.results.writer import ResultsWriter, check_version

__all__ = ["FORMAT", "FORMAT_VERSION", "Results", "ResultsWriter", "check_version", "open_results"]
