"""Whether a site's policy allows what a run asks for."""

from __future__ import annotations

from fedllm.config import AllowSection, DataSection, RunConfig
from fedllm.config.task import smallest_unit
from fedllm.encryption.sparse import MaskGraph, is_large
from fedllm.errors import RefusedError
from fedllm.mechanisms import mechanism_of
from fedllm.models.contents import held_as
from fedllm.privacy.ledger.fingerprints import Unit


def protected_unit(config: RunConfig, data: DataSection | None) -> Unit:
    """Return whose protection a site's training keeps, by its own source where it names one.

    Parameters
    ----------
    data : DataSection, optional
        Of the site's policy; without one, the run's counts. Whatever a run says of its data, what
        the site's own names is protected.
    """
    source = data or config.data
    return smallest_unit(config.task) if source.unit is None else "person"


def check_allowed(config: RunConfig, allow: AllowSection, model_fingerprint: str) -> None:
    """Refuse a run that the site's policy does not allow.

    Raises
    ------
    RefusedError
        Names the policy's key. Says nothing about the data.
    """
    refuse(config.task not in allow.tasks, f"task {config.task!r} is not in allow.tasks")
    # A policy names files; a run, what they are held as.
    held = config.model.quantization, config.model.precision
    allowed = {held_as(model, *held) for model in allow.models}
    if allowed and model_fingerprint not in allowed:
        raise RefusedError(
            "the base model's fingerprint is not in allow.models",
            "fedllm client check prints the fingerprint of the site's own copy; those that earlier "
            "versions printed did not cover all files and are no longer accepted",
        )
    refuse(
        allow.encryption == "required" and config.encryption.scheme == "none",
        "the run does not encrypt updates, and allow.encryption is 'required'",
    )
    encrypted, masked = config.encryption.scheme != "none", config.encryption.masked
    refuse(
        allow.masks == "required" and encrypted and not masked,
        "the run has no masks, so that its coordinator can open single updates, and allow.masks "
        "is 'required'",
    )
    if mechanism_of(config).needs_masks and not masked:
        raise RefusedError(
            "the run shares its noise among the sites and has no masks: whoever opens one update "
            "sees one share of the noise",
            "the coordinator sets encryption.masks = true, or privacy.noise = 'local'",
        )
    refuse(
        allow.colluders > 0 and config.rounds.min_sites < allow.colluders + 2,
        f"sums of {config.rounds.min_sites} sites may be opened, of which allow.colluders = "
        f"{allow.colluders} could be subtracted by those that may be in league: fewer than two "
        "would be left",
    )
    counted = mechanism_of(config).colluders
    refuse(
        counted is not None and counted < allow.colluders,
        f"the run's noise counts on {counted} sites in league with others "
        f"(privacy.colluders), and allow.colluders is {allow.colluders}",
    )
    refuse(
        not config.private and not allow.non_private,
        "the run has no differential privacy, and allow.non_private is false",
    )
    refuse(
        allow.unit == "person" and config.unit == "record",
        "the run protects single records, and allow.unit is 'person'",
    )
    asked = config.evaluation.parts
    refuse(
        asked is not None and asked not in allow.parts,
        f"the run tells quality at the sites by {asked}, and {asked!r} is not in allow.parts",
    )
    refuse(
        config.rounds.min_sites < allow.min_cohort,
        f"sums of {config.rounds.min_sites} sites may be opened, and allow.min_cohort is "
        f"{allow.min_cohort}",
    )


def check_large(config: RunConfig, graph: MaskGraph, sites: int, allow: AllowSection) -> None:
    """Refuse masks of a large cohort that protect against less than the site's policy asks for.

    Whoever writes the configuration would else choose masks that a handful of sites take off:
    by a graph that allows for few, or by one so demanding that all share masks with all, where
    any sum of ``rounds.min_sites`` sites may be opened.

    Parameters
    ----------
    config : RunConfig
        The run's.
    graph : MaskGraph
        Who shares masks with whom in the cohort.
    sites : int
        Size of the cohort.
    allow : AllowSection
        The site's.

    Raises
    ------
    RefusedError
        Names the policy's key.
    """
    encryption = config.encryption
    if not is_large(sites) or not encryption.masked:
        return
    colluders, remedy = graph.colluders, "raise encryption.colluding_share"
    expected = max(allow.colluders, int(allow.colluding_share * sites))
    if graph.complete:
        # Where nobody may be missing the only sum is that of all.
        smallest = config.rounds.min_sites if encryption.recover_dropouts else sites
        colluders, remedy = smallest - 2, f"set rounds.min_sites = {expected + 2} or more"
    if colluders < expected:
        raise RefusedError(
            f"the round's masks allow for {colluders} of {sites} sites in league, and this site "
            f"expects {expected} (allow.colluding_share = {allow.colluding_share:g}, "
            f"allow.colluders = {allow.colluders})",
            remedy,
        )
    if encryption.lost_share > allow.lost_share:
        raise RefusedError(
            f"encryption.lost_share is {encryption.lost_share:g}, and allow.lost_share "
            f"{allow.lost_share:g}",
            "lower encryption.lost_share",
        )


def refuse(condition: bool, reason: str) -> None:
    """Raise a `RefusedError` with ``reason`` if ``condition`` holds."""
    if condition:
        raise RefusedError(reason, "the site's owner can change its policy; the run cannot")
