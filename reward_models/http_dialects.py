"""What the HTTP reward sends to a server and reads from it: the JSON of this project, or that of OpenRLHF.

OpenRLHF trains on "rewards", the list that its server returns; its "scores" only select prompts, so that they are no
substitute (https://github.com/OpenRLHF/OpenRLHF/tree/3c3be6234e0cb353e76bb8019947db9dfe99fca7, and the same in each
version since "labels" were added, 0.6.0):

openrlhf/utils/agent.py#L283-L297, #L322-L356        the client
openrlhf/cli/serve_rm.py#L128-L135                   the server
openrlhf/datasets/prompts_dataset.py#L43-L45         the labels, which are empty texts unless the data has some
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from workbench.errors import UserError, shorten, suggestion
from workbench.rewards.signatures import missing_column

DEFAULT_LABEL_COLUMN = "label"


class Dialect(Protocol):
    """How texts are sent to a server, and under which key it returns the scores."""

    path: ClassVar[str]
    """What follows the url."""
    scores_key: ClassVar[str]
    url_fix: ClassVar[str]
    """What to do about a url that the server does not have."""

    def select(self, columns: Mapping[str, list]) -> dict[str, list]:
        """Return the columns that are sent; raises UserError if the data lack one."""
        ...

    def body(self, prompts: list[str], completions: list[str], columns: Mapping[str, list]) -> dict[str, Any]:
        """Return the request about some rows."""
        ...


@dataclass(frozen=True)
class Workbench:
    """The JSON of this project's server, which also judges."""

    path: ClassVar[str] = "/score"
    scores_key: ClassVar[str] = "scores"
    url_fix: ClassVar[str] = "correct the url: it is the part before /score (a server for OpenRLHF: dialect: openrlhf)"

    def select(self, columns: Mapping[str, list]) -> dict[str, list]:
        """Return all columns."""
        return dict(columns)

    def body(self, prompts: list[str], completions: list[str], columns: Mapping[str, list]) -> dict[str, Any]:
        """Return prompts, completions and columns."""
        return {"prompts": prompts, "completions": completions, "columns": columns}


@dataclass(frozen=True)
class OpenRLHF:
    """The JSON of OpenRLHF's remote reward models."""

    label_column: str | None
    """None for DEFAULT_LABEL_COLUMN where the data have it."""
    eos_token: str

    path: ClassVar[str] = ""
    scores_key: ClassVar[str] = "rewards"
    url_fix: ClassVar[str] = "correct the url: it is the whole address, such as http://127.0.0.1:5000/get_reward"

    def select(self, columns: Mapping[str, list]) -> dict[str, list]:
        """Return the column of the labels, if the data have one; raises UserError if they lack the one that is set."""
        if self.label_column is not None and self.label_column not in columns:
            raise UserError(missing_column("http (label_column)", self.label_column, columns))
        name = self.label_column or DEFAULT_LABEL_COLUMN
        return {name: columns[name]} if name in columns else {}

    def body(self, prompts: list[str], completions: list[str], columns: Mapping[str, list]) -> dict[str, Any]:
        """Return the queries, each a prompt and its completion, the prompts, and the labels."""
        rows = zip(prompts, completions, strict=True)
        queries = [f"{prompt}{completion}{self.eos_token}" for prompt, completion in rows]
        labels = next(iter(columns.values()), [""] * len(prompts))
        return {"query": queries, "prompts": prompts, "labels": labels}


def make_dialect(name: str, label_column: str | None, eos_token: str) -> Dialect:
    """Return the dialect `workbench` or `openrlhf`; raises UserError for another, or an option it does not read."""
    if name not in ("workbench", "openrlhf"):
        raise UserError(f"http: dialect is {shorten(name)}{suggestion(str(name), ['workbench', 'openrlhf'])}")
    if name == "workbench":
        for option, value in (("label_column", label_column), ("eos_token", eos_token or None)):
            if value is not None:
                raise UserError(f"http: {option} is {shorten(value)}, which only dialect: openrlhf reads; set that too")
        return Workbench()
    if label_column is not None and (not isinstance(label_column, str) or not label_column):
        raise UserError(f"http: label_column is {shorten(label_column)}, but it must be the name of a column")
    if not isinstance(eos_token, str):
        raise UserError(f"http: eos_token is {shorten(eos_token)}, but it must be a text, such as </s>")
    return OpenRLHF(label_column, eos_token)
