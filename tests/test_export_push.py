"""A push to the hub with a fake client: what is uploaded, and the message when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from exports import exported, section
from huggingface_hub.errors import HfHubHTTPError

from workbench.errors import UserError


class Hub:
    """A fake client of the hub that records its calls."""

    calls: list[tuple[str, dict[str, Any]]]
    public = False
    failure: Exception | None = None

    def __init__(self) -> None:
        type(self).calls = []

    def create_repo(self, name: str, **options: Any) -> str:
        """Return the repository's address, or raise the failure."""
        self.calls.append((name, options))
        if self.failure:
            raise self.failure
        return f"https://huggingface.co/{name}"

    def model_info(self, name: str) -> Any:
        """Return whether the repository is private."""
        return huggingface_hub.ModelInfo(id=name, private=not self.public)

    def upload_folder(self, **options: Any) -> None:
        """Record the folder."""
        self.calls.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    """Replace the hub's client, with a user logged in."""
    client = type("Client", (Hub,), {})
    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return client


def test_a_push_creates_the_repository_and_uploads_the_folder(
    hub: type[Hub], workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "out", "--merge", "--push_to_hub", "me/model", "--private")
    assert hub.calls[0] == ("me/model", {"private": True, "exist_ok": True})
    assert (hub.calls[1][1]["repo_id"], hub.calls[1][1]["folder_path"]) == ("me/model", folder.resolve())
    assert "pushed to https://huggingface.co/me/model" in capsys.readouterr().out
    assert 'path = "me/model"' in section(folder, "Usage")


def test_a_failed_push_leaves_the_export_and_is_one_line(
    hub: type[Hub], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(to: str, *arguments: str) -> str:
        with pytest.raises(UserError) as raised:
            exported(tmp_path / to, "--merge", "--push_to_hub", "me/model", *arguments)
        assert (tmp_path / to / "README.md").is_file(), "the export itself stays"
        assert not [call for call in hub.calls if call[0] == "upload"]
        assert "\n" not in str(raised.value)
        return str(raised.value)

    hub.public = True
    assert "me/model exists and is public" in line("public", "--private")
    request = httpx2.Request("POST", "https://huggingface.co/api/repos/create")
    hub.failure = HfHubHTTPError("403 Forbidden\nnot yours", response=httpx2.Response(403, request=request))
    assert "not pushed: 403 Forbidden; fix that" in line("forbidden")
    hub.failure = HfHubHTTPError("401 Unauthorized", response=httpx2.Response(401, request=request))
    assert "not logged in to the hub; run hf auth login" in line("unknown")
    hub.failure = ConnectionError("no network\nat all")
    assert f"no network; fix that, then: hf upload me/model {tmp_path / 'failed'} ." in line("failed")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    hub.calls.clear()
    message = line("out", "--private")
    assert "run hf auth login, then: hf upload me/model" in message
    assert message.endswith(" . --private")
    assert hub.calls == []
