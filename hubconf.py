"""Models for torch.hub: new ones by the names of their sizes, trained ones by a path or a name on the Hugging Face Hub.

    model = torch.hub.load("/path/to/this/checkout", "mae_vit_base_patch16", source="local", img_size=112)
    model = torch.hub.load("/path/to/this/checkout", "load_model", "RUN", source="local")

Names that begin with _ are no entries.
"""

from collections.abc import Callable as _Callable

import mae3d as _mae3d
from mae3d import load_classifier, load_model, open_encoder

__all__ = ["load_classifier", "load_model", "open_encoder"]

dependencies = ["torch", "timm", "safetensors"]


def _entry(name: str) -> _Callable[..., object]:
    def build(**settings: object) -> object:
        return _mae3d.create_model(name, **settings)

    build.__doc__ = f"Build {name} with random weights (mae3d.create_model); settings override its sizes."
    return build


globals().update({_name: _entry(_name) for _name in _mae3d.list_models()})
