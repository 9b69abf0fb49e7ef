"""Where models come from: the package itself, a local folder, or the Hugging Face hub.

`MODELS` is the table of the names tfgen knows; a new model is one entry. Importing this module
costs no torch, so `tfgen models` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from tfgen.errors import InputError, TfgenError, unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tfgen.priors.base import Prior
    from tfgen.tokenizers.base import Tokenizer
    from tfgen.verifiers.base import Verifier

WEIGHTS = Path(__file__).parent / "weights"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # of a checkpoint on the hub
DEFAULT_MODEL = "sprites"
DEFAULT_VERIFIER = "sprites-clip"
ALSO = {  # what else than a name of MODELS is understood
    "tokenizer": ["the path of a local folder", "a FlexTok on the Hugging Face hub, OWNER/NAME"],
    "verifier": ["the path of a local folder", "an open_clip name like ViT-B-32/laion2b_s34b_b79k"],
}
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Model:
    """A model that tfgen knows by name."""

    role: Literal["tokenizer", "verifier", "prior", "judge"]
    about: str
    licence: str
    hub_id: str | None = None
    """Its repository on the Hugging Face hub; None: it is in the package, in `WEIGHTS / name`."""

    parameters: int | None = None


_RESEARCH = "apple-amlr (research only)"

MODELS: dict[str, Model] = {
    "sprites": Model("tokenizer", "the sprite world", "Apache-2.0"),
    "sprites-grid": Model("tokenizer", "its control: tokens on a 2D grid", "Apache-2.0"),
    "sprites-clip": Model("verifier", "CLIP of the sprite world", "Apache-2.0"),
    "sprites-judge": Model("judge", "its object detector, which only measures", "Apache-2.0"),
    "flextok-d12-in1k": Model(
        "tokenizer",
        "FlexTok d12-d12, ImageNet-1k",
        _RESEARCH,
        hub_id="EPFL-VILAB/flextok_d12_d12_in1k",
        parameters=341_700_000,
    ),
    "flextok-d18-in1k": Model(
        "tokenizer",
        "FlexTok d18-d18, ImageNet-1k",
        _RESEARCH,
        hub_id="EPFL-VILAB/flextok_d18_d18_in1k",
        parameters=949_700_000,
    ),
    "flextok-d18-d28-in1k": Model(
        "tokenizer",
        "FlexTok d18-d28, ImageNet-1k",
        _RESEARCH,
        hub_id="EPFL-VILAB/flextok_d18_d28_in1k",
        parameters=2_540_900_000,
    ),
    "flextok-d18-d28-dfn": Model(
        "tokenizer",
        "FlexTok d18-d28, DFN",
        _RESEARCH,
        hub_id="EPFL-VILAB/flextok_d18_d28_dfn",
        parameters=2_540_900_000,
    ),
}
_FLEXAR = {  # on FlexTok's tokens: blocks * 16 * width² parameters, embedding, head and text MLP
    "113M": 217_000_000,
    "382M": 536_000_000,
    "1B": 1_372_000_000,
    "3B": 3_361_000_000,
}
MODELS |= {
    f"flexar-{size.lower()}": Model(
        "prior",
        f"FlexAR {size}, trained on text; tokens of flextok-d18-d28-dfn",
        "see its model card",
        hub_id=f"EPFL-VILAB/FlexAR-{size}-T2I",
        parameters=parameters,
    )
    for size, parameters in _FLEXAR.items()
}


def cache_folder() -> Path:
    """Where tfgen keeps what it fetched or computed: $TFGEN_CACHE, else ~/.cache/tfgen."""
    return Path(os.environ.get("TFGEN_CACHE") or "~/.cache/tfgen").expanduser()


def locate(name: str, role: str = "tokenizer") -> Path:
    """The folder with the weights of `name`: a packaged model of that role, one of the hub, which
    is downloaded where it is not on this machine yet, or a local folder.

    Raises InputError for anything else; for an unknown name it tells the nearest and all known.
    """
    model = MODELS.get(name)
    if model is not None and model.role == role:
        if model.hub_id is not None:
            return fetch(model.hub_id, name, model.licence)
        if not (WEIGHTS / name).is_dir():
            raise TfgenError(
                f"The weights of {name!r} are missing in {str(WEIGHTS)!r}: install tfgen again."
            )
        return WEIGHTS / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{name!r} is a file: give the folder that holds the {role}'s files.")
    if looks_like_a_path(name):
        raise InputError(f"There is no folder {name!r} to load a {role} from.")
    if role == "tokenizer" and name.count("/") == 1:
        names = {model.hub_id: name for name, model in MODELS.items()}
        return locate(names[name]) if name in names else fetch(name)
    known = [known for known, model in MODELS.items() if model.role == role]
    raise unknown(role, name, known + ALSO[role])


def fetch(repository: str, name: str | None = None, licence: str | None = None) -> Path:
    """The folder with the files of a checkpoint on the Hugging Face hub: weights, and a config
    where there is one. Downloads them unless they are in the hub's cache or, for a model with a
    name of ours, in the folder models/NAME of the cache folder.

    The licence is told on stderr at the first use. Raises InputError where the hub has no such
    checkpoint, TfgenError where it cannot be downloaded now.
    """
    own = cache_folder() / "models" / (name or repository.replace("/", "--"))
    if (own / WEIGHTS_FILE).is_file():
        folder = own
    elif (cached := in_cache(repository, WEIGHTS_FILE, CONFIG_FILE)) and cached[0]:
        folder = cached[0].parent
    else:
        try:
            folder = download(repository, WEIGHTS_FILE).parent
        except InputError:
            raise
        except TfgenError as error:
            raise TfgenError(
                f"{name or repository} is not on this machine and cannot be downloaded now: with a "
                f"network, run `tfgen models fetch {name or repository}`, or put {WEIGHTS_FILE} "
                f"(and {CONFIG_FILE}, if there is one) of https://huggingface.co/{repository} into "
                f"the folder {str(own)!r}."
            ) from error
        with suppress(TfgenError):  # the config may as well be in the header of the weights
            download(repository, CONFIG_FILE)
    if licence:
        _tell_licence(name or repository, repository, licence)
    return folder


def _tell_licence(name: str, repository: str, licence: str) -> None:
    """Once, also where all else is quiet: a file in the cache folder remembers that it was told."""
    told = cache_folder() / "licences" / name
    if told.exists():
        return
    print(
        f"The weights of {name} are under the licence {licence}, which tfgen's own does not "
        f"change: read it at https://huggingface.co/{repository}. This is said once.",
        file=sys.stderr,
    )
    with suppress(OSError):  # then it is said again
        told.parent.mkdir(parents=True, exist_ok=True)
        told.touch()


def kind_of(folder: Path) -> str:
    """The kind of tokenizer that a folder holds, a key of TOKENIZERS: what its tokenizer.json says,
    or that of a published layout that its config is in. Raises InputError where it is none."""
    if (folder / "tokenizer.json").exists():
        return read_json(folder / "tokenizer.json").get("kind", "sprites")
    config: dict[str, Any] = {}
    if (folder / WEIGHTS_FILE).is_file():
        config |= safetensors_metadata(folder / WEIGHTS_FILE)
    if (folder / CONFIG_FILE).is_file():
        config |= read_json(folder / CONFIG_FILE)
    from tfgen.tokenizers.flextok_config import is_flextok

    if is_flextok(config):
        return "flextok"
    lacking = "no tokenizer.json"
    if config or (folder / WEIGHTS_FILE).is_file():
        lacking += f", and neither {CONFIG_FILE} nor the header of {WEIGHTS_FILE} is a FlexTok's"
    raise InputError(f"{str(folder)!r} holds no tfgen model: it has {lacking}.")


def search_defaults(model: str) -> dict[str, Any]:
    """What a generation with this model uses where the user says nothing.

    Fields of SearchSettings, and `prior` and `verifier` by name: the `search_defaults` of its
    tokenizer.json, or those of its kind.
    """
    folder = locate(model)
    if kind_of(folder) == "flextok":
        from tfgen.tokenizers.flextok_config import SEARCH_DEFAULTS

        return dict(SEARCH_DEFAULTS)
    return dict(read_json(folder / "tokenizer.json").get("search_defaults", {}))


def load_tokenizer(name: str, device: torch.device) -> Tokenizer:
    """The tokenizer of a model, by name or local folder."""
    folder = locate(name)
    kind = kind_of(folder)
    from tfgen.tokenizers import TOKENIZERS

    if kind not in TOKENIZERS:
        raise unknown(f"kind of tokenizer (asked for by {str(folder)!r})", kind, TOKENIZERS)
    return resolve_name(TOKENIZERS[kind]).load(folder, device)


def load_prior(name: str, model: str, tokenizer: Tokenizer) -> Prior:
    """A prior for this model and its tokenizer: by name; KIND:SOURCE for one with files of its own,
    such as flexar:~/my-flexar (a folder or a repository on the hub), retrieval:bank.safetensors or
    frequency:prior.safetensors; or several of these joined by +, such as frequency+retrieval."""
    from tfgen.priors import PRIORS, CombinedPrior, FlexARPrior

    if "+" in name:
        return CombinedPrior([load_prior(part, model, tokenizer) for part in name.split("+")])
    kind, _, source = name.partition(":")
    published = MODELS.get(name)
    if published is not None and published.role == "prior":
        kind, source = "flexar", published.hub_id or str(WEIGHTS / name)
    if kind not in PRIORS or (source and kind not in ("flexar", "retrieval", "frequency")):
        own = [known for known, known_model in MODELS.items() if known_model.role == "prior"]
        forms = ["flexar:FOLDER_OR_HUB_ID", "retrieval:BANK_FILE", "frequency:FILE"]
        raise unknown("prior", name, [*PRIORS, *own, *forms])
    if kind == "retrieval":
        bank = Path(source).expanduser() if source else None
        return PRIORS[kind].for_tokenizer(tokenizer, locate(model), bank)
    prior = PRIORS[kind].for_tokenizer(tokenizer, Path(source) if source else locate(model))
    if isinstance(prior, FlexARPrior):
        _warn_of_other_tokens(name, prior.flexar.config.tokenizer, model)
    return prior


def _warn_of_other_tokens(prior: str, trained_on: str | None, model: str) -> None:
    """trained_on: the repository of the tokenizer whose tokens the prior knows, if it tells."""
    if trained_on is None or _hub_id(model) in (None, trained_on):
        return
    from tfgen.pipeline import PromptWarning  # not before: it imports this module

    names = {known.hub_id: name for name, known in MODELS.items()}
    warnings.warn(
        f"The prior {prior} was trained on the tokens of {trained_on}, which mean something else "
        f"to {model}: use --model {names.get(trained_on, trained_on)}.",
        PromptWarning,
        stacklevel=3,
    )


def _hub_id(model: str) -> str | None:
    """The repository of a model on the hub, or the name of one in the package; None: of a folder,
    which may be a copy of any."""
    if model in MODELS:
        return MODELS[model].hub_id or model
    is_path = looks_like_a_path(model) or Path(model).is_dir()
    return None if is_path else model


def load_verifier(name: str, device: torch.device, score: str) -> Verifier:
    """A verifier by name, local folder, or open_clip name such as `ViT-B-32/laion2b_s34b_b79k`."""
    is_path = looks_like_a_path(name) or Path(name).is_dir()
    is_open_clip = "/" in name and not is_path
    source = name if is_open_clip else str(locate(name, "verifier"))
    from tfgen.verifiers import VERIFIERS

    return resolve_name(VERIFIERS["clip"]).load(source, device, score=score)


def looks_like_a_path(name: str) -> bool:
    """Whether a name is meant as a path, even where nothing is there."""
    return name.startswith((".", "/", "~"))


def in_cache(repository: str, *files: str) -> list[Path | None] | None:
    """The files of a Hugging Face repository in the hub's cache, all of one revision; None in the
    place of one that the hub has not. None in the place of all where the hub must be asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        found = [try_to_load_from_cache(repository, file) for file in files]
    except HFValidationError:  # `download` says it in a sentence
        return None
    if None in found:
        return None
    return [Path(path) if isinstance(path, str) else None for path in found]


def download(repository: str, file: str, option: str = "") -> Path:
    """A file of a Hugging Face repository, from the hub's cache or the hub.

    option: what a user can give a folder to instead, for a message.

    Raises InputError where there is no such repository or file, TfgenError where it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, file))
    except HFValidationError as error:
        raise InputError(f"{repository!r} is no hub repository: write OWNER/NAME.") from error
    except LocalEntryNotFoundError as error:
        to = f" to {option}" if option else ""
        raise TfgenError(
            f"{file} of {repository} is not on this machine and cannot be downloaded: run again "
            f"with a network, or give a folder that holds the repository's files{to}."
        ) from error
    except EntryNotFoundError as error:
        raise InputError(f"{repository} on the hub has no {file}: name another model.") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no repository {repository!r} on the hub that you may read: name another "
            "model, or log in with `hf auth login`."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TfgenError(
            f"{file} of {repository} cannot be had ({reason}): try again later."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError where it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{str(path.parent)!r} holds no tfgen model: it has no {path.name}."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is no JSON that can be read: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{str(path)!r} is no JSON object.")
    return value


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises InputError on a file that is missing, truncated, damaged or foreign. A pickled
    checkpoint, which can run code when it is loaded, is refused unread.
    """
    from safetensors.torch import load_file

    with reading_safetensors(path):
        return load_file(path)


def safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings in the header of a safetensors file. Raises InputError as `read_safetensors`."""
    from safetensors import safe_open

    with reading_safetensors(path), safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


@contextmanager
def reading_safetensors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around whatever opens a safetensors file: raises InputError where it cannot be read."""
    from safetensors import SafetensorError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no weights file {str(path)!r}.")
    with path.open("rb") as file:
        head = file.read(32)
    # The length of a safetensors header may begin with any byte, but after it comes JSON.
    pickled = head.startswith((b"PK\x03\x04", b"\x80")) and head[8:9] != b"{"
    if path.suffix.lower() in PICKLE_SUFFIXES or pickled:
        raise InputError(
            f"{str(path)!r} is a pickled checkpoint, which can run code when it is loaded: "
            "convert it to safetensors, the only format tfgen reads."
        )
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{str(path)!r} is a Git LFS pointer and not the weights: run git lfs pull."
        )
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} is truncated, damaged, or no safetensors file ({error}): "
            "get the file again."
        ) from error


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Fill a module with exactly these tensors. Raises InputError where they do not fit.

    source: the file they come from, for the message.
    """
    wanted = module.state_dict()
    faults = [f"{key} is missing" for key in wanted if key not in tensors]
    faults += [f"{key} is unknown" for key in tensors if key not in wanted]
    faults += [
        f"{key} is {list(tensors[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"{str(source)!r} holds the weights of another model ({', '.join(faults[:3])}{more}): "
            "use the files that belong together."
        )
    module.load_state_dict(tensors)


def list_models() -> list[dict[str, Any]]:
    """One row a model: those in the package, in the hub's cache, and on the hub by name.

    Keys: name, role, where ("packaged", "cached" or "hub"), bytes (on disk, or None), parameters
    (or None), licence, hub_id, about. Asks no network.
    """
    cached = _cached_repositories()
    rows = []
    for name, model in MODELS.items():
        if model.hub_id is None:
            rows.append(_row(name, model, "packaged", _size(WEIGHTS / name)))
        elif (own := cache_folder() / "models" / name).is_dir():
            rows.append(_row(name, model, "cached", _size(own)))
        elif model.hub_id in cached:
            rows.append(_row(name, model, "cached", cached.pop(model.hub_id)))
        else:
            rows.append(_row(name, model, "hub", None))
    for hub_id, size in sorted(cached.items()):
        model = Model("verifier", "an open_clip model", "see its model card", hub_id)
        rows.append(_row(f"hf-hub:{hub_id}", model, "cached", size))
    return rows


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _row(name: str, model: Model, where: str, size: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "role": model.role,
        "where": where,
        "bytes": size,
        "parameters": model.parameters,
        "licence": model.licence,
        "hub_id": model.hub_id,
        "about": model.about,
    }


def _cached_repositories() -> dict[str, int]:
    """Hub id -> bytes, of the `MODELS` and of any open_clip model in the hub's cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.utils import CacheNotFound

    known = {model.hub_id for model in MODELS.values()}
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return {}
    return {
        repository.repo_id: repository.size_on_disk
        for repository in repositories
        if repository.repo_type == "model"
        and (repository.repo_id in known or _is_open_clip(repository))
    }


def _is_open_clip(repository: Any) -> bool:
    files = {file.file_name for revision in repository.revisions for file in revision.files}
    return any(name.startswith("open_clip_") for name in files)
