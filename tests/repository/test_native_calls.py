"""Every call that hands memory to C, or makes arrays of memory that nobody has written, has its reason here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mae3d", "preprocess", "pipelines", "launch")

# The last part of a call's name; what C is given is a pointer, a stride or a length, or memory comes without values.
NATIVE = {
    *("frombuffer", "frombytes", "fromarray", "from_buffer", "from_buffer_copy", "from_buffers", "py_buffer"),
    *("foreign_buffer", "from_address", "memoryview", "mmap", "memmap", "open_memmap", "memory_map", "as_strided"),
    *("sliding_window_view", "readinto", "readinto1", "recv_into", "preadv", "fromfile", "unpack_from", "pack_into"),
    *("from_numpy", "from_dlpack", "data_ptr", "cudaHostRegister", "cudaHostUnregister"),
    *("external_source", "feed_input", "as_reshaped_tensor", "as_tensor", "as_cpu"),
    *("reformat", "to_ndarray", "from_ndarray", "from_numpy_buffer", "to_image", "from_image", "planes"),
    *("CDLL", "PyDLL", "LoadLibrary", "byref", "pointer", "addressof", "string_at", "memmove", "memset"),
    *("empty", "empty_like", "empty_strided", "new_empty", "ndarray"),
}
NATIVE_MODULES = ("simplejpeg", "ctypes", "torch.ops")  # all that is called in them


def native_calls() -> Iterator[str]:
    """Yield `module.function call` for each call into C of the four packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield from calls_in(ast.parse(path.read_text()), module)


def calls_in(tree: ast.AST, where: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inside = f"{where}.{node.name}" if named else where
        if isinstance(node, ast.Call | ast.Attribute) and (name := native_name(node)):
            yield f"{inside} {name}"
        yield from calls_in(node, inside)


def native_name(node: ast.Call | ast.Attribute) -> str:
    """Return the name of what is called if it is one of C's, else ""; planes are read without a call."""
    if isinstance(node, ast.Attribute):
        return "planes" if node.attr == "planes" else ""
    name = ast.unparse(node.func)
    if name.startswith(NATIVE_MODULES):
        return name
    last = name.rpartition(".")[2]
    return last if last in NATIVE else ""
if __name__ == "__main__":
    print(*sorted(set(native_calls())), sep="\n")
