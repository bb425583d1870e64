"""What a reader must know to read the report's statistics."""

PUBLISHED = (
    "The published numbers below were not measured here: others printed them for this model, "
    "dataset, editor, batch size and number of edits. Theirs are means over all edits; the scope"
    " of the runs’ own numbers stands beside them."
)
GAINS = (
    "Gains are differences of percentages, in points. Each is a paired difference: two runs with"
    " the same seed, records, order and settings but for SPHERE, read at the same step. That "
    "step is the end of the runs; “30 of 60” says that they have not got there, or that some "
    "ended early, so that it was not chosen beforehand. The interval is Student’s t over the "
    "pairs: seeds are the sample, not steps or records. With one seed there is none, and the "
    "difference may be chance. Intervals are not corrected for their number. Relative gains are "
    "not shown: they explode where the editor without SPHERE has little left, and do not exist "
    "where it has nothing."
)
POSTER = (
    "The poster’s average (arXiv 2510.01172) is over its models, editors and data, without "
    "saying of which measure. It says %, and is shown as points here, because it can hardly be a"
    " relative gain: from AlphaEdit to SPHERE on Llama-3 its paper gains 20.5 points on average,"
    " or 590 % of what there was. It is no result of these runs."
)
CORRELATIONS = (
    "The unedited model is left out: from it to the first batch quality rises because anything "
    "is edited at all. Correlations over all runs are within runs: from each run its mean is "
    "taken first. Intervals come from a circular block bootstrap within runs, with blocks of the"
    " square root of a run’s changes, or of a third of its levels: a series that drifts holds "
    "little more than three independent pieces. Two series that drift correlate whatever the "
    "cause, so the changes are the stricter question. Runs are the sample: “runs below 0” counts"
    " those that agree. A run of fewer than four points gives no number, nor do constant ones; "
    "fewer than eight in all give no interval."
)
P_VALUES = (
    "Levels have no p-value: no test known here holds on series that drift. That of changes is "
    "the share of circular shifts of one series against the other that correlate at least as "
    "strongly, with runs of the same edits in the same order shifted together. It is adjusted by"
    " Holm for the rows of its table, and withheld where a run has fewer than 40 changes, or "
    "where shifts are too few for so many rows. On independent random walks, autoregressive "
    "series and noise it falls to 0.05 or below in at most 7 % of cases, which a test of sphere-"
    "bench holds."
)
