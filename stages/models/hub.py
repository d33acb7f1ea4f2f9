"""Uploading a model to a hub."""

from pathlib import Path

from huggingface_hub import HfApi


def upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str = "Upload a model trained by PPO",
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> None:
    """Upload a folder into a repository of the hub.

    Args:
        folder: what to upload.
        repo_id: repository, made if there is none.
        commit_message: of the upload.
        private: whether a repository that is made is private; None leaves it to the hub.
        token: of your account; None takes the one that is stored on this machine.
        branch: where to upload to; None takes the main one.
        create_pr: whether to propose the upload in place of making it.
    """
    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=name, folder_path=folder, commit_message=commit_message, revision=branch, create_pr=create_pr
    )
