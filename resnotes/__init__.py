__version__ = "0.1.0"

import sys
from importlib.machinery import PathFinder, SourceFileLoader


class _Loader(SourceFileLoader):
    "Runs a module of this package, and says what to install where a package of the training part is missing"
    def exec_module(self, module):
        try: super().exec_module(module)
        except ModuleNotFoundError as error:
            if not error.name or error.name.split('.')[0] == __name__: raise
            says = f"{module.__name__} needs {error.name}, which is not installed: pip install 'resnotes[train]'"
            raise ModuleNotFoundError(says, name=error.name) from error


class _Finder:
    "Finds the modules of this package where Python would, and has `_Loader` run them"
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.rpartition('.')[0] != __name__: return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and type(spec.loader) is SourceFileLoader: spec.loader = _Loader(name, spec.origin)
        return spec


sys.meta_path.insert(0, _Finder)
