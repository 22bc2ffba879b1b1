"""What authors of criteria and selectors may use."""

from .apportion import apportion as apportion
from .items import Items as Items
from .items import prune_smallest as prune_smallest
from .select import kth_smallest as kth_smallest
from .select import smallest as smallest
from .select import smallest_of_rows as smallest_of_rows
from .weights import FlatIndex as FlatIndex
from .weights import Layer as Layer
from .weights import pruned_counts as pruned_counts
