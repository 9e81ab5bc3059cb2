"""A model's folder sent to the hub."""

from pathlib import Path

from halfstep.model.loading import CONFIG_FILE, SAFETENSORS_SUFFIX
from halfstep.run.errors import UserError, one_line
from halfstep.run.retries import may_pass
from halfstep.tools.card import CARD_FILE, model_card
from halfstep.tools.export import model_files


def push_model(folder: Path, repo_id: str, *, is_private: bool) -> str:
    """Send the files of a model and its card, which is made if it is not there, in one commit; the commit's address.

    Args:
        repo_id: OWNER/NAME, created if it is not there.
        is_private: whether it is then for its owner alone.
    Raises:
        UserError: the folder holds no model, there is no token, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    files = model_files(folder)
    if not {CONFIG_FILE, SAFETENSORS_SUFFIX} <= {file.name for file in files} | {file.suffix for file in files}:
        raise UserError(f"{folder} is not a model's folder: it needs {CONFIG_FILE} and weights as {SAFETENSORS_SUFFIX}")
    if get_token() is None:
        raise UserError(f"{repo_id} needs a token that may write: hf auth login, or HF_TOKEN in the environment")
    card = folder / CARD_FILE
    content: Path | bytes = card if card.is_file() else str(model_card(folder, folder)).encode()
    additions = [CommitOperationAdd(file.name, file) for file in files] + [CommitOperationAdd(CARD_FILE, content)]
    api = HfApi()
    try:
        # Where nothing is said, an organization's own rule holds.
        api.create_repo(repo_id, private=is_private or None, exist_ok=True)
        return str(api.create_commit(repo_id, additions, commit_message="Model made with halfstep").commit_url)
    except Exception as error:
        # What the hub answers is an OSError, what it finds wrong a ValueError; of the network it is the HTTP library's.
        if not isinstance(error, OSError | ValueError) and not may_pass(error):
            raise
        is_refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        way_out = "give a token that may write there: hf auth login" if is_refused else "the same command tries again"
        raise UserError(f"{repo_id} was not sent to {api.endpoint} ({one_line(error)}); {way_out}") from None
