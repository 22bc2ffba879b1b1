"""What plugins and their tests may use of the host."""

from .host import PluginManager as PluginManager
from .host import default_manager as default_manager
from .import_path import call_from as call_from
