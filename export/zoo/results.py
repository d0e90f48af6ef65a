"""The results' file: written after every model, so that a run that was stopped goes on where it was."""

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.versions import installed_versions
from export.zoo.check import MAX_PER_IMG, MAX_PROPOSALS, SIZE
from export.zoo.models import NAME_PART, ZooConfig
from export.zoo.verdicts import EXACT, PENDING, RESULTS, UNBUILDABLE
from runtime.files import write_whole

PACKAGES = ("mmdet", "mmengine", "mmcv", "mmcv-lite", "torch", "onnx", "onnxsim", "onnxruntime", "openvino")
RULE = f"every config that mmdet ships with '{NAME_PART}' in its name"


@dataclass
class ZooResults:
    """A row per distinct model.

    Attributes:
        path: of the file.
        models: the model's key -> its row: the config that was measured, the code's fingerprint, the result.
    """

    path: Path
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "ZooResults":
        """Read the file; none gives no rows.

        Raises:
            ValueError: the file is there and is not such a file.
        """
        if not path.is_file():
            return cls(path)
        try:
            return cls(path, {row["model"]: row for row in json.loads(path.read_text())["models"]})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected results of export.zoo, found another file ({error!r}); name one with --output"
            ) from error

    def write(self, configs: Sequence[ZooConfig]) -> None:
        """Write the rows, and every config with its model's result, whole or not at all."""
        content = {
            "rule": RULE,
            "size": list(SIZE),
            "max_proposals": MAX_PROPOSALS,
            "max_per_img": MAX_PER_IMG,
            "versions": installed_versions(PACKAGES),
            "configs": config_rows(configs, self.models),
            "models": sorted(self.models.values(), key=lambda row: row["config"]),
        }
        text = json.dumps(content, indent=1)
        text = re.sub(r"\n {3,}|\n  (?=[\]}])", " ", text)  # a row per line
        write_whole(self.path, (text + "\n").encode("utf-8"))

    def forget_others(self, keys: Container[str]) -> None:
        """Drop the rows of models that no config has any more."""
        self.models = {key: row for key, row in self.models.items() if key in keys}

    def pending(self, models: Iterable[ZooConfig], code: str, retry: Container[str] = ()) -> list[ZooConfig]:
        """Return which models to measure: those without a row, or with one of other code; with ``retry``, by result.

        ``PENDING`` is the result of those without a row.
        """
        rows = [(model, self.models.get(model.key)) for model in models]
        if retry:
            return [model for model, row in rows if (PENDING if row is None else row["result"]) in retry]
        return [model for model, row in rows if row is None or row["code"] != code]


def config_rows(configs: Sequence[ZooConfig], models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per config: its model's result, and the config that this was measured with."""
    rows = []
    for config in configs:
        row = {"config": config.name, "folder": config.folder}
        if config.problem is not None:
            row.update(result=UNBUILDABLE, reason=config.problem)
        elif config.key in models:
            model = models[config.key]
            row.update(result=model["result"], model=config.key, measured_with=model["config"])
        else:
            row.update(result=PENDING, model=config.key)
        rows.append(row)
    return rows


def ranked_reasons(
    configs: Sequence[ZooConfig], models: dict[str, dict[str, Any]]
) -> list[tuple[str, str, int]]:
    """Return (result, reason, number of configs) of what is not exact, most configs first within each result."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in config_rows(configs, models):
        if row["result"] not in (EXACT, PENDING):
            counts[row["result"], row.get("reason") or models[row["model"]]["reason"]] += 1
    ordered = sorted(counts.items(), key=lambda item: (RESULTS.index(item[0][0]), -item[1], item[0][1]))
    return [(result, reason, count) for (result, reason), count in ordered]
