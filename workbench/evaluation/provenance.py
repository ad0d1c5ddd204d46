"""Where the results of an evaluation come from: commit, versions, and hashes of models, scorers and data."""

from __future__ import annotations

import hashlib
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from workbench.config.names import BASE, REWARD, TRAINED_BY
from workbench.config.schema import Config
from workbench.config.scorers import as_scorer
from workbench.config.sources import DataSource, Scorer
from workbench.data.sources import source_hash
from workbench.evaluation.fluency import fluency_model_name
from workbench.evaluation.judges import scorer_parts
from workbench.evaluation.models import local_folder, trained_folders
from workbench.evaluation.sources import Provenance, Source
from workbench.models.loading import policy_precision
from workbench.run.files import content_hash
from workbench.run.folder import Run, git_commit, package_versions


def provenance(run: Run, device: torch.device) -> Provenance:
    """Return where the results come from."""
    config = run.config
    sources = [model_source(BASE, config.policy.model)]
    for title, folder in trained_folders(run).items():
        sources.append(Source(title, "model", TRAINED_BY[title], content_hash(folder)))
    sources += [model_source(title, name) for title, name in config.evaluation.models.items()]
    sources += [model_source(title, entry.adapter) for title, entry in config.evaluation.anti_expert.items()]
    sources += scorer_sources(run)
    data = config.evaluation.data | config.evaluation.texts
    sources += [data_origin(name, source) for name, source in data.items()]
    return Provenance(
        date=datetime.now(UTC).date().isoformat(),
        commit=git_commit(),
        machine=f"{platform.machine()}, {device.type}, {policy_precision(config.policy, device)}",
        versions=package_versions(),
        sources=sources,
    )


def data_origin(title: str, source: DataSource) -> Source:
    """Return data as a source, with the hash of the files that its split is read from, where they are local."""
    return Source(title, "data", source.path, source_hash(source))


def model_source(title: str, name: str) -> Source:
    """Return a model as a source."""
    folder = local_folder(name)
    return Source(title, "model", name, None if folder is None else content_hash(folder))


def scorer_sources(run: Run) -> list[Source]:
    """Return the reward, the judges, the further rewards and the encoder of the similarity as sources."""
    config: Config = run.config
    evaluation, sources = config.evaluation, []
    if config.reward:
        model = config.reward.model or REWARD
        scorer = Scorer(str(run.folder / REWARD) if config.reward.model is None else model, config.reward.options)
        sources.append(Source("reward", "reward", model, scorer_hash(scorer)))
    for entry in evaluation.judges:
        scorer = as_scorer(entry, "evaluation.judges")
        sources.append(Source(scorer.model, "judge", scorer.model, scorer_hash(scorer)))
    for entry in evaluation.rewards:
        scorer = as_scorer(entry, "evaluation.rewards")
        sources.append(Source(scorer.model, "score", scorer.model, scorer_hash(scorer)))
    if evaluation.similarity is not None:
        encoder = evaluation.similarity
        sources.append(Source("similarity", "encoder", encoder, content_hash(Path(encoder).expanduser())))
    if (fluency := fluency_model_name(config)) is not None:
        folder = local_folder(fluency)
        sources.append(Source("fluency", "fluency", fluency, None if folder is None else content_hash(folder)))
    return sources


def scorer_hash(scorer: Scorer) -> str | None:
    """Return a hash of the folders, files and user modules that a scorer is made of; None where it needs none."""
    files = [value for part in scorer_parts(scorer) for value in (part.model, *part.options.values())]
    hashes = [digest for value in files if (digest := _file_hash(value)) is not None]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _file_hash(value: Any) -> str | None:
    """Return the hash of a folder, a file, or the module of package.module:object; None for anything else."""
    if not isinstance(value, str) or "\0" in value:
        return None
    module = sys.modules.get(value.partition(":")[0]) if ":" in value else None
    if module is not None and module.__file__ is not None:
        return content_hash(Path(module.__file__))
    try:
        return content_hash(Path(value).expanduser())
    except OSError:  # a text that is too long for a path
        return None
