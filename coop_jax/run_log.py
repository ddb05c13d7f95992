"""The metrics and the progress of a run while it trains."""

from coop_jax import metrics, train
from coop_jax.chunks import Batches
from coop_jax.data import few_shot
from coop_jax.experiment import Experiment, run_name
from coop_jax.progress import Tracker
from coop_jax.run import TrainingRun, Watcher


class Log(Watcher):
    """The metrics of every step of a run, and its part of the progress."""

    def __init__(self, experiment: Experiment, run: TrainingRun, tracker: Tracker):
        shots, config = run.shots or 0, experiment.config
        self._label, self._tracker = experiment.label(run), tracker
        name, described = run_name(shots, run.seed), {**config, "shots": shots, "seed": run.seed}
        self._metrics = metrics.Writer(experiment.workdir, name, config["loggers"], described)
        self._first = self._steps = 0
        self._batches: Batches | None = None
        uses_validation = "validation" in run.method.uses
        few_shot.warn_about_short_classes(run.dataset, shots, validation=uses_validation)

    def begins(self, steps: int, done: int, batches: Batches | None) -> None:
        """Go on after what an earlier process has done of a stage."""
        self._first, self._steps, self._batches = self._steps, self._steps + steps, batches
        if batches is not None:
            self._metrics.resume(self._first + done)
            if done:
                self._tracker.say(f"{self._label}: goes on after step {self._first + done}")
        self._tracker.skip(done)

    def note(self, progress: train.Progress) -> None:
        """Say how far the training is, and write epoch, learning rate and losses of every step."""
        if self._batches is None:
            self._tracker.advance(1, self._label)
            return
        losses = progress.losses.tolist()
        self._tracker.advance(len(losses), f"{self._label}, loss {losses[-1]:.3f}")
        first = progress.done - len(losses)
        several = progress.terms if len(progress.terms) > 1 else {}
        values = [
            {
                "epoch": int(self._batches.epoch[step]),
                "learning_rate": float(self._batches.rate[step]),
                "loss": loss,
                **{f"loss/{name}": float(term[step - first]) for name, term in several.items()},
            }
            for step, loss in enumerate(losses, start=first)
        ]
        self._metrics.write(self._first + first, values)

    def evaluated(self, target: str, accuracy: float) -> None:
        """Log a test accuracy in percent, after the last step."""
        self._metrics.evaluated(max(self._steps, 1), target, accuracy)

    def close(self) -> None:
        """End the metrics."""
        self._metrics.close()
