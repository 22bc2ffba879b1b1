"""What authors of criteria and selectors may use."""

from .apportion import apportion as apportion
from .prunable import input_axes as input_axes
from .select import kth_smallest as kth_smallest
from .select import prune_smallest as prune_smallest
from .select import smallest as smallest
from .weights import Layer as Layer
