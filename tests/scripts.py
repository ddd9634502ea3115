"""Scripts as modules: experiments share file names, so `import train` cannot say which one is meant."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load(path):
    """ "ff_mnist/train.py" -> its module, the same one every time; what it imports is found beside it."""
    folder = (ROOT / path).parent
    prefix = f"{folder.name}_"
    name = prefix + Path(path).stem
    if name in sys.modules:
        return sys.modules[name]
    beside = {file.stem for file in folder.glob("*.py")}
    hidden = {stem: sys.modules.pop(stem) for stem in beside if stem in sys.modules}
    sys.modules.update({stem: sys.modules[prefix + stem] for stem in beside if prefix + stem in sys.modules})
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    finally:
        sys.path.remove(str(folder))
        for stem in beside & sys.modules.keys():
            sys.modules.setdefault(prefix + stem, sys.modules.pop(stem))
        sys.modules.update(hidden)
    return sys.modules[name]
