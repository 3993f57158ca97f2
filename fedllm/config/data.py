"""Where the records of a run come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedllm.config.section import PositiveFloat, PositiveInt, Section


class DataSection(Section):
    """Where records come from and which column means what.

    Attributes
    ----------
    train : str
        The training records: a path, a glob pattern or an SQL URL.
    test : str, optional
        The same of the test records, which are public and stay with the coordinator.
    query : str, optional
        The SELECT that gives the training records when ``train`` is a SQL URL.
    query_timeout_s : float
        How long the database may work on that query before it is cancelled (PostgreSQL).
    text : str
        Column of the text, in every task but instruction.
    label : str
        Column of the label, in a classification task.
    spans : str
        Column of the parts of the text that have a label, in a token classification: a JSON list of
        ``{"start": 0, "end": 4, "label": "NAME"}``, in characters of the text (Unicode code
        points) from 0, the end not included; none may overlap, and ``[]`` says that there is none.
    prompt : str
        Column of the prompt, in an instruction or a preference task.
    response : str
        Column of the answer, in an instruction task; the loss counts it alone.
    context : str
        Column of what the prompt is about, in a preference task; a source may lack it, and it may
        be empty in a row.
    chosen : str
        Column of the answer that was preferred, in a preference task.
    rejected : str
        Column of the answer that it was preferred to.
    answers : str
        Instead of these two, column of two to eight answers: a JSON list of texts.
    ranks : str
        Column of their ranks: a JSON list of as many numbers, 1 for the best; equal ones are tied.
    labels : list of str, optional
        The public set of labels; taken from the public test file when left out.
    unit : str, optional
        Column that names the person a record belongs to, or, where rows are about nobody, the
        row that it is a copy of; names are compared without regard to case and to how Unicode
        spells them. Records are protected one by one when left out.
    site : str, optional
        Column that splits the file into natural sites (simulation).
    partition : {"iid", "dirichlet"}
        Otherwise how the file is dealt out to the sites: evenly, or by a Dirichlet
        distribution over labels (simulation).
    alpha : float
        Concentration of that distribution; the smaller, the more uneven (simulation).
    sites : int
        To how many sites the file is dealt out (simulation).
    max_records_per_unit : int
        A person's records beyond this number are left out, and so are rows with one prompt and
        context beyond it, in a preference task.
    test_limit : int, optional
        Evaluate on so many of the test records, chosen at random.
    group : str, optional
        Column that says which group a record is of, such as a language or the kind of source. In a
        run, of the public test file: quality is told for each group by itself at the end. In a
        site's policy, of the site's records, and in a simulation of both files: where the run sets
        ``evaluation.parts = "group"``, held-out records count for their group too. It may be empty
        in some records, and these count in the whole alone, as do all of a site whose policy names
        no column.
    """

    train: str
    test: str | None = None
    query: str | None = None
    query_timeout_s: Annotated[PositiveFloat, Field(le=86400)] = 600.0
    text: str = "text"
    label: str = "label"
    spans: str = "spans"
    prompt: str = "prompt"
    response: str = "response"
    context: str = "context"
    chosen: str = "chosen"
    rejected: str = "rejected"
    answers: str = "answers"
    ranks: str = "ranks"
    labels: tuple[str, ...] | None = None
    unit: str | None = None
    max_records_per_unit: PositiveInt = 16
    site: str | None = None
    partition: Literal["iid", "dirichlet"] = "iid"
    alpha: PositiveFloat = 0.5
    sites: PositiveInt = 10
    test_limit: PositiveInt | None = None
    group: str | None = None
