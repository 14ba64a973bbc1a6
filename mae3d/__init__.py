"""MAE3D trains masked autoencoders on video; here are its model, its training and its weights.

    import mae3d
    model = mae3d.MAE(mae3d.MAEConfig(preset="mae_vit_base_patch16"))  # a new model
    model = mae3d.load_model("RUN")  # a trained one: a run, an exported folder, a foreign checkpoint
    clip = mae3d.read_clip("talk.mp4", model.config, sampling_rate=4)  # what model and model.encoder take

Names are resolved on first use (PEP 562), so that `import mae3d` and `mae3d.model.config` cost nothing: `--help` of
a command line must not wait for torch.
"""

from importlib import import_module

__version__ = "0.2.0"

_OWNERS = {
    "Classifier": "model.classifier",
    "ClassifierConfig": "model.config",
    "Encoder": "model.encoder",
    "EncoderConfig": "model.config",
    "FrameEncoder": "model.frames",
    "Inflate": "weights.inflate",
    "MAE": "model.mae",
    "MAEConfig": "model.config",
    "MAEOutput": "model.mae",
    "create_model": "model.registry",
    "embed": "analysis.features",
    "list_models": "model.registry",
    "load_classifier": "weights.files",
    "load_encoder": "weights.resize",
    "load_model": "weights.files",
    "mask_noise": "model.masking",
    "open_encoder": "weights.files",
    "open_frame_encoder": "weights.frames",
    "push_to_hub": "weights.push",
    "read_clip": "video.clip",
    "reconstruct": "analysis.reconstruct",
    "save_model": "weights.files",
}

__all__ = ["__version__", *_OWNERS]


def __getattr__(name: str) -> object:
    """Import the module that owns a public name when the name is first used."""
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OWNERS[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
