"""Which extra of the distribution brings which package, so that an import that fails can say what to install.

Imports only the standard library: it must work where nothing else is installed.
"""

DISTRIBUTION = "vjepa-pretraining"

_TRAIN = (
    "pytorch_lightning", "timm", "webdataset", "decord", "av", "omegaconf", "yaml", "tensorboard", "torchmetrics",
    "matplotlib", "PIL", "tqdm", "numpy",
)  # fmt: skip
EXTRAS = {  # import name -> extra that brings it, the smallest first
    **dict.fromkeys(_TRAIN, "train"),
    "transformers": "transformers",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "huggingface_hub": "hub",
    "sklearn": "probe",
    "pyarrow": "probe",
    "pandas": "probe",
}
REQUIRED = ("torch", "safetensors")  # what a plain install brings


def install_command(package: str) -> str:
    """The command that installs the package with this import name."""
    if package in REQUIRED:
        return f"pip install {DISTRIBUTION}"
    extra = EXTRAS.get(package)
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {package}"


def explain_missing(error: ImportError, wanted: str) -> str:
    """What is missing for `wanted` and the command that installs it; the error's own text if no package is missing."""
    package = (error.name or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in {*EXTRAS, *REQUIRED}:
        return str(error)
    return f"{wanted} needs {package}, which is not installed: {install_command(package)}"
