"""CUDA tensors without a GPU: shapes, dtypes, devices, copies and waits, but no numbers.

torch's fake tensors, on a device guard that does nothing. It is C++ and is compiled when it is first
needed, which takes a compiler. It can't be unloaded: use a process of its own.
"""

import ctypes
import dataclasses
import subprocess
import sysconfig
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree, cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode

from embedcli.encoder import packing

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Device getDevice() const noexcept override { return {c10::DeviceType::CUDA, 0}; }
};
static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, new Guard());
"""
COPIES = {"_to_copy", "copy_", "to"}
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}


def install(folder: Path) -> None:
    """Make torch believe in a GPU."""
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(GUARD)
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    flags = [f"-I{path}" for path in includes] + [
        f"-L{path}" for path in cpp_extension.library_paths()
    ]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", source, "-o", library, *flags, "-lc10"]
    subprocess.run(command, check=True, capture_output=True)
    ctypes.CDLL(str(library))
    torch.cuda.is_available = lambda: True
    torch.Tensor.pin_memory = lambda self, *_: self
    torch._C._cuda_init = lambda: None
    FakeTensorMode.avoid_device_init = property(lambda self: True)
    # The body of the operator, so that fake tensors run through it.
    packing.packed_attention = packing.packed_attention._init_fn


def on_fake_gpu(model, kernel):
    """Return the model with its weights on the fake GPU, and the mode in which it runs."""
    mode, device = FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda:0")
    for module in model.transformer.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                fake = FakeTensor(mode, weight.data.to("meta"), device)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
        for name, values in list(module._buffers.items()):
            if values is not None:
                module._buffers[name] = FakeTensor(mode, values.to("meta"), device)
    way = dataclasses.replace(model.packing, kernel=kernel)
    return dataclasses.replace(model, device=device, packing=way), mode


class Waits(TorchDispatchMode):
    """Notes what makes the processor wait for the GPU."""

    def __init__(self):
        super().__init__()
        self.waits, self.operations = [], 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        results = operation(*arguments, **options)
        name = operation.overloadpacket.__name__
        before, after = (
            {
                leaf.device.type
                for leaf in _pytree.tree_leaves(tree)
                if isinstance(leaf, torch.Tensor)
            }
            for tree in ((arguments, options), results)
        )
        self.operations += "cuda" in after
        crosses = name in COPIES and before | after == {"cpu", "cuda"}
        is_free = options.get("non_blocking") or any(value is True for value in arguments)
        if name in WAITS or (crosses and not is_free):
            self.waits.append(f"{name} {before} {after}")
        return results
