"""Commands over lists of verification trials: `calibrate` a bundle on them, `score` them by a running server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.clips import Asked
from service.cli.connection import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    connected,
    fail,
    print_json,
    print_table,
    progress_bar,
    told,
)

Trials = Annotated[
    Path, typer.Option("--trials", exists=True, dir_okay=False, help="List of `label path1 path2`; 1 is one speaker.")
]
Data = Annotated[
    Path, typer.Option("--data", exists=True, file_okay=False, help="Folder that its paths are seen from.")
]


def calibrate(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Directory of the bundle.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Directory of the calibrated bundle.")],
    trials: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="List of `label path1 path2`; 1 is one speaker.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CSV of file,start,end,label, for a classifier.")
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="List of `speaker path`; the trials' own speakers without it."),
    ] = None,
    top: Annotated[int, typer.Option(min=2, max=10_000, help="Nearest voices that normalise a score.")] = 300,
    normalise: Annotated[
        bool | None, typer.Option(help="Normalise scores by the cohort; where that lowers minCllr unless told.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="As for `ipet serve`.")] = "embedded",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fit a bundle to recordings of your own: a speaker bundle to trials, a classifier's thresholds to known events.

    --trials: cohort, thresholds and log-likelihood ratios; the figures after are of speakers that they were not fitted
    on. The bundle is a new version, so calibrate before you enrol. --events: a threshold for each label, by segment F1;
    the figures after are of recordings that they were not fitted on. OUT holds calibration.json too, and det.png.
    """
    if (trials is None) == (events is None):
        fail("expected one of --trials and --events: a list for a speaker bundle, a table for a classifier")
    with told(), progress_bar("listening") as progress:
        from service.training.calibrate import calibrate as run
        from service.training.events import calibrate_events
        from service.training.inference import open_bundle

        opened = open_bundle(bundle, backbone, device, dtype)
        if trials is not None:
            report = run(opened, (trials, cohort), data, out, top=top, normalise=normalise, progress=progress)
        elif events is not None:
            report = calibrate_events(opened, data, events, out, progress=progress)
    if as_json:
        print_json(report)
        return
    if events is not None:
        _print_events(report, out)
        return
    rows = [row for side in ("before", "after") for row in _rows(report, side)]
    print_table(["", "figure", "value", "95 % interval"], rows)
    held = (
        "the figures after are of speakers left out of the fit" if report["held_out"] else "fitted on the same trials"
    )
    voices = f"a cohort of {report['cohort']}" if report["cohort"] else "scores not normalised"
    typer.echo(f"{report['trials']} trials of {report['speakers']} speakers, {voices}; {held}")
    typer.echo(f"{out}")


def score(
    trials: Trials,
    data: Data,
    adapter: Annotated[str, typer.Option("--adapter", "-a", help="`name`, `name@2` or `name@alias`.")],
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for a line `score path1 path2` a trial.")
    ] = None,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Rank by `normalised_score`, asked of the server for each trial.")
    ] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Score a list of trials by a running server, and print the equal error rate with its 95 % interval.

    Every clip is embedded once; scores are cosines, as of `POST /v1/score`, unless normalised ones are asked for.
    """
    import numpy as np

    from service.scoring.bootstrap import REPLICATES, trial_intervals
    from service.scoring.metrics import equal_error_rate, min_dcf
    from service.scoring.score import cosine
    from service.training.datasets.trials import read_list, speakers_of

    with connected(url, key) as client:
        listed = read_list(data, trials.stem, trials)
        asked = Asked([span.path for span in listed.spans], lambda clips: client.embed(clips, adapter))
        prints = {files[one["clip"]]: one["embedding"] for files, answer in asked for one in answer["results"]}
        kept = [one for one in listed.trials if one.left.path in prints and one.right.path in prints]
        pairs = [(prints[one.left.path], prints[one.right.path]) for one in kept]
        asked_pairs = pairs if normalised else pairs[:1]  # one tells whether there are normalised scores
        answers = [client.score_embeddings([left], right, adapter) for left, right in asked_pairs]
        has_normalised = all("normalised_score" in answer for answer in answers)
        if normalised and not has_normalised:
            raise ValueError(f"{adapter} has no `normalisation`, so its scores are cosines only")
        ranked = [one.get("normalised_score") for one in answers] if normalised else [cosine(*one) for one in pairs]
        scores = np.array(ranked, np.float64)
        targets, speakers = np.array([one.same for one in kept], bool), speakers_of(kept)
        rate, threshold = equal_error_rate(scores, targets)
        found = trial_intervals(scores, targets, speakers, REPLICATES)
    if out is not None:
        lines = [f"{value:.6f} {one.left.path} {one.right.path}" for value, one in zip(scores, kept, strict=True)]
        out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    figures: dict[str, Any] = {
        "trials": len(kept),
        "left_out": len(listed.trials) - len(kept),
        "speakers": int(speakers.max()) + 1,
        "score": "normalised_score" if normalised else "score",
    }
    figures |= {"eer": rate, "eer_interval": found.intervals["eer"], "eer_threshold": threshold}
    figures |= {"min_dcf_1": min_dcf(scores, targets), "resampled": found.resampled}
    if as_json:
        print_json(figures)
    else:
        low, high = found.intervals["eer"]
        typer.echo(f"EER {rate:.4f} ({low:.4f} to {high:.4f}) at {threshold:.4f}, minDCF {figures['min_dcf_1']:.4f}")
        typer.echo(f"{len(kept)} trials of {figures['speakers']} speakers, {figures['left_out']} left out")
        if has_normalised:
            typer.echo("by normalised scores" if normalised else "by cosines; --normalised ranks by normalised scores")
    asked.end()


def _print_events(report: dict[str, Any], out: Path) -> None:
    rows = [
        [side, f"{kind} F1", *_told([figures["f1"], *figures["interval"]])]
        for side in ("before", "after")
        for kind, figures in report[side].items()
    ]
    print_table(["", "figure", "value", "95 % interval"], rows)
    print_table(["label", "threshold"], [[label, f"{level:g}"] for label, level in report["thresholds"].items()])
    how = "each left out of the fit that judges it" if report["held_out"] else "fitted and judged on the same"
    typer.echo(f"{report['events']} events in {report['recordings']} recordings, {how}")
    typer.echo(f"{out}")


def _rows(report: dict[str, Any], side: str) -> list[list[str]]:
    figures = report[side]
    rows = [["EER", *_told(figures["eer"])]]
    for name, label in (("min_dcf_1", "minDCF (p 0.01)"), ("cllr", "Cllr"), ("min_cllr", "minCllr")):
        rows.append([label, "none" if figures[name] is None else f"{figures[name]:.4f}", ""])
    for name, rates in figures["thresholds"].items():
        rows += [[f"{kind.replace('_', ' ')}s at {name}", *_told(values)] for kind, values in rates.items()]
    return [[side, *row] for row in rows]


def _told(values: Sequence[float]) -> list[str]:
    return [f"{values[0]:.4f}", f"{values[1]:.4f} to {values[2]:.4f}"]
