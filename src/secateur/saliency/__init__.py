"""What a unit is worth: questions asked of E(g). Every module in this folder is loaded, so that criteria are found."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
