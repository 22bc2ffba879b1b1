"""What plugins may use that run a model themselves."""

from .call import Inputs as Inputs
from .call import call as call
from .call import few_examples as few_examples
from .lent import copied as copied
from .quiet import without_bars as without_bars
