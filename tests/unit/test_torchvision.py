"""Importing torchvision where its compiled operators do not load. A process for each, since an
import happens once."""

import subprocess
import sys


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_what_needs_torchvision_imports_afterwards() -> None:
    run(
        "import torch\n"
        "original = torch.library.register_fake\n"
        "from lensdist.utils.torchvision_compat import import_torchvision\n"
        "tv = import_torchvision()\n"
        "assert torch.library.register_fake is original\n"
        "assert import_torchvision() is tv\n"
        "import torchmetrics, torchvision\n"
        "from torchvision.models import resnet18\n"
        "from torchvision.transforms import v2\n"
        "from torchvision.ops import misc\n"  # timm takes its layers from here
        "x = v2.functional.horizontal_flip(torch.rand(1, 3, 32, 32))\n"
        "assert resnet18().eval()(x).shape == (1, 1000)\n"
    )


def test_mends_an_import_that_has_failed() -> None:
    run(
        "import contextlib\n"
        "with contextlib.suppress(RuntimeError):\n"
        "    import torchvision\n"
        "from lensdist.utils.torchvision_compat import import_torchvision\n"
        "import_torchvision()\n"
        "import torchmetrics, torchvision.models\n"
    )


def test_threads_leave_no_patch_behind() -> None:
    run(
        "import threading, torch\n"
        "from lensdist.utils.torchvision_compat import import_torchvision\n"
        "original = torch.library.register_fake\n"
        "threads = [threading.Thread(target=import_torchvision) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert torch.library.register_fake is original\n"
        "import torchmetrics\n"
    )


def test_inert_where_the_operators_load() -> None:
    """An operator that exists is registered by torch itself, through the patch."""
    run(
        "import sys, types, torch\n"
        "from torch.library import Library\n"
        "lib = Library('torchvision', 'DEF'); lib.define('there(Tensor x) -> Tensor')\n"
        "fake = types.ModuleType('torchvision')\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        import importlib.machinery as m\n"
        "        return m.ModuleSpec(name, self) if name == 'torchvision' else None\n"
        "    def create_module(self, spec): return fake\n"
        "    def exec_module(self, module):\n"
        "        there = lambda x: x.new_empty(7)\n"
        "        assert torch.library.register_fake('torchvision::there')(there) is there\n"
        "        torch.library.register_fake('torchvision::missing')(there)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from lensdist.utils.torchvision_compat import import_torchvision\n"
        "assert import_torchvision() is fake\n"
        "x = torch.empty(3, device='meta')\n"
        "assert torch.ops.torchvision.there(x).shape == (7,)\n"
    )


def test_an_import_error_restores_torch() -> None:
    run(
        "import sys, torch\n"
        "sys.modules['torchvision'] = None\n"
        "original = torch.library.register_fake\n"
        "from lensdist.utils.torchvision_compat import import_torchvision\n"
        "try: import_torchvision()\n"
        "except ImportError: pass\n"
        "else: raise SystemExit('no error')\n"
        "assert torch.library.register_fake is original\n"
    )
