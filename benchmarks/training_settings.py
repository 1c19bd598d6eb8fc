"""What a training on a real model asks: one TOML a training in benchmarks/settings, and files of GSM8K's problems.

Takes paths, gives frozen values and tasks. It runs no model.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seen_problems import Seen, seen_draws, without_seen

import edge_steer as es
from edge_steer.core.sampling import Sampling
from edge_steer.storage.files import read_lines
from edge_steer.storage.toml import TomlTable
from edge_steer.tasks.rows import Row
from edge_steer.tasks.task import Task
from edge_steer.training.settings import RlooSettings

PLAIN = Sampling(temperature=1.0)
LLAMA_CPP = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)  # what its tools do where nothing is said
OTHER_SAMPLINGS = {"greedy": Sampling(), "defaults": LLAMA_CPP}
SHUFFLED, RANDOM = CONTROLS = ("shuffled rewards", "random vector")  # trained alike; of the first vector's norms


@dataclass(frozen=True)
class PoolSettings:
    """problems: of train, drawn by seed 0, which the untrained model answers `samples` times each. dev: how many of
    those with a contrast are not trained on, but answered before and after."""

    problems: int
    samples: int
    dev: int


@dataclass(frozen=True)
class TestSettings:
    """seen: what earlier runs drew and is left out. draw: problems of the others, drawn by seed 0. samples: answers to
    each. also: names of OTHER_SAMPLINGS, by which the untrained model and the exported vector answer too. quant: the
    type of the file that is tested; "" is the model's own."""

    seen: tuple[Seen, ...]
    draw: int
    samples: int
    also: tuple[str, ...]
    quant: str


@dataclass(frozen=True)
class VoteSettings:
    """problems: the first of the test, to which the untrained model gives `samples` answers each, which vote."""

    problems: int
    samples: int


@dataclass(frozen=True)
class Training:
    """name: of its vector. folder: the name of it."""

    name: str
    folder: str
    rloo: RlooSettings


@dataclass(frozen=True)
class Settings:
    """model: a GGUF. calculations: the most of a problem's solution. template: None is the model's own. sampler: the
    type that the model has while it is trained. seeds: how many, a training each. controls: which of CONTROLS there
    are. prompt: the one it is trained under. prompts: by name; "{question}" stands for the problem. pool: how the
    problems of the training are chosen; None is all of them. vote: None asks for none."""

    model: str
    calculations: int
    template: str | None
    stop: tuple[str, ...]
    sampler: str
    rloo: RlooSettings
    seeds: int
    controls: tuple[str, ...]
    prompt: str
    prompts: Mapping[str, str]
    pool: PoolSettings | None
    test: TestSettings
    vote: VoteSettings | None

    def trainings(self) -> list[Training]:
        """That of the first seed comes first."""
        first, *others = (replace(self.rloo, seed=seed) for seed in range(self.seeds))
        trainings = [Training("vector", "trained", first)]
        trainings += [Training(f"vector, seed {rloo.seed}", f"trained-{rloo.seed}", rloo) for rloo in others]
        if SHUFFLED in self.controls:
            shuffled = replace(first, shuffle_rewards=True)
            trainings.append(Training("rewards shuffled", "trained-shuffled", shuffled))
        return trainings

    def asked(self, task: Task, prompt: str, samples: int, seed: int = 0, sampling: Sampling = PLAIN) -> Task:
        """A task under one of the prompts, several answers to each problem; greedy ones are all the same."""
        return task.with_settings(
            prompt=self.prompts[prompt],
            samples=samples if sampling.temperature else 1,
            max_tokens=self.rloo.max_tokens,
            sampling=replace(sampling, seed=seed),
            stop=self.stop,
        )


def read_settings(path: Path) -> Settings:
    """Errors: EdgeSteerError for a key that is missing, unknown or of another type."""
    table = TomlTable(path, "settings of a training")
    train, prompts, test = table.tables("train", "prompts", "test")
    pool, vote = table.table("pool"), table.table("vote")
    rloo = RlooSettings(
        steps=train.whole("steps"),
        prompts=train.whole("prompts"),
        generations=train.whole("generations"),
        max_tokens=train.whole("max_tokens"),
        learning_rate=train.number("learning_rate"),
        warmup=train.whole("warmup"),
    )
    settings = Settings(
        model=table.text("model"),
        calculations=table.whole("calculations"),
        template=table.text("template", optional=True) or None,
        stop=table.texts("stop"),
        sampler=train.text("sampler"),
        rloo=rloo,
        seeds=train.whole("seeds", 1),
        controls=_names(train, "controls", CONTROLS),
        prompt=train.text("prompt"),
        prompts={name: prompts.text(name) for name in list(prompts.rest)},
        pool=PoolSettings(pool.whole("problems"), pool.whole("samples"), pool.whole("dev")) if pool else None,
        test=TestSettings(
            seen_draws(test),
            test.whole("draw"),
            test.whole("samples"),
            _names(test, "also", OTHER_SAMPLINGS),
            test.text("quant", optional=True),
        ),
        vote=VoteSettings(vote.whole("problems"), vote.whole("samples")) if vote else None,
    )
    for part in filter(None, (train, prompts, pool, test, vote, table)):
        part.finish()
    return settings


def _names(table: TomlTable, key: str, known: Collection[str]) -> tuple[str, ...]:
    """Some of the known names; none where the key is missing."""
    names = table.texts(key, ())
    if unknown := set(names) - {*known}:
        raise table.error(key, f"no {min(unknown)!r}; allowed are {', '.join(known)}")
    return names


def easy_problems(file: Path, folder: Path, settings: Settings) -> Task:
    """The problems of a file of GSM8K whose solution has so few calculations. folder: keeps a file of them."""
    path = folder / file.name
    lines = [line for line in read_lines(file, "problems of GSM8K") if 0 < line.count("<<") <= settings.calculations]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return es.load_task(f"gsm8k={path}", protocol="densesteer")


def unseen_problems(task: Task, settings: TestSettings) -> Task:
    """Problems that no earlier training was tested on."""
    return without_seen(task, settings.seen).subset(settings.draw)


def with_contrast(task: Task, rows: Sequence[Row]) -> Task:
    """The problems with right and with wrong answers among these, where right is what a reward is given for.

    From any other problem, RLOO learns nothing; cf. the dynamic sampling of DAPO, arXiv 2503.14476, section 3.2.
    """
    answers, right = Counter(row.id for row in rows), Counter(row.id for row in rows if row.boxed)
    return replace(task, samples=tuple(sample for sample in task.samples if 0 < right[sample.id] < answers[sample.id]))
