"""A notebook: edit facts of an embedded model, look at the neurons that were written, and undo.

    pip install -e ".[notebook]"
    marimo edit examples/neurons.py    # or marimo run, to read it only

It needs no download.  Change a cell, and those that depend on it run again.
"""

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import tempfile
    from pathlib import Path

    import marimo as mo
    import torch

    from nse_plugin import EditFolder
    from nse_plugin.data import atlas
    from nse_plugin.data.readers import parse_records
    from nse_plugin.report.figures import to_png
    from nse_plugin.report.run import Run
    from nse_plugin.report.run_figures import run_pictures
    from nse_plugin.report.theme import LIGHT
    from nse_plugin.session import queries

    return (
        EditFolder,
        LIGHT,
        Path,
        Run,
        atlas,
        mo,
        parse_records,
        queries,
        run_pictures,
        tempfile,
        to_png,
        torch,
    )


@app.cell
def _(mo):
    mo.md(
        """
        # Which neurons hold an edit?

        `atlas:gpt2` is a small model that knows an invented world. Twelve of its facts are changed
        here with NSE, three in a round. A round writes into the MLP down-projections of some
        layers, and the ledger keeps what it wrote: so any round can be looked at, and undone.
        """
    )


@app.cell
def _(EditFolder, Path, atlas, parse_records, tempfile):
    folder = Path(tempfile.mkdtemp(prefix="neurons-")) / "edits"
    edits = EditFolder(folder, model="atlas:gpt2")
    original = {name: p.detach().clone() for name, p in edits.model.named_parameters()}
    facts = parse_records(atlas.edit_set(12, seed=0))
    reports = [edits.edit_facts(facts[at : at + 3]) for at in range(0, len(facts), 3)]
    return edits, folder, original, reports


@app.cell
def _(mo, reports):
    def row(report, fact):
        asked = next(a for a in fact.asked if a.kind == "prompt")
        held = "yes" if fact.in_effect else "no"
        return f"| {report.round} | {fact.prompt} | {asked.before} | {asked.after} | {held} |"

    rows = [row(report, fact) for report in reports for fact in report.facts]
    mo.md(
        "\n".join(
            [
                "## What the model says before and after each round",
                "",
                "| round | prompt | before | after | in effect |",
                "|---|---|---|---|---|",
                *rows,
            ]
        )
    )


@app.cell
def _(LIGHT, Run, folder, mo, reports, run_pictures, to_png):
    pictures = {picture.name: picture for picture in run_pictures(Run(folder))}

    def drawn(name):
        picture = pictures[name]
        return mo.image(to_png(picture.draw(LIGHT)), alt=picture.alt, width=600)

    mo.vstack(
        [
            mo.md(
                f"## What the {len(reports)} rounds wrote\n\nThe colour is the norm of the change "
                "of a neuron's column. A few neurons change much in nearly every round."
            ),
            drawn("ledger"),
            mo.md("The norm of all changes together, less than the norms of the rounds add up to:"),
            drawn("norm"),
        ]
    )
    return (pictures,)


@app.cell
def _(edits, mo, pictures, queries):
    assert "ledger" in pictures  # this cell comes after the figures, and before the undo
    ledger, layer = edits.session.ledger, edits.hparams.layers[-1]
    neurons = queries.neurons(ledger, layer).sort_values("norm", ascending=False)
    neuron = int(neurons.index[0])
    writers = queries.who_wrote(ledger, layer, neuron)
    mo.vstack(
        [
            mo.md(f"## Neuron {neuron} of layer {layer} changed most, and these facts changed it"),
            mo.ui.table(writers, selection=None),
        ]
    )
    return (writers,)


@app.cell
def _(edits, mo, reports, writers):
    assert len(writers)  # after the tables
    taken_back = reports[1]
    edits.undo(taken_back.round)

    def answer(fact):
        return edits.ask(fact.prompt, max_new_tokens=8, untouched=False).edited.strip()

    kept = [f for r in reports if r is not taken_back for f in r.facts]
    gone = [f for f in taken_back.facts if not answer(f).startswith(f.target)]
    still = [f for f in kept if answer(f).startswith(f.target)]
    mo.md(
        f"## Round {taken_back.round} is undone\n\n{len(gone)} of its {len(taken_back.facts)} "
        f"facts are as they were; of the {len(kept)} of the other rounds {len(still)} hold."
    )
    return gone, still


@app.cell
def _(edits, gone, mo, original, still, torch):
    assert gone and still  # after the first undo
    while edits.session.ledger.numbers():
        edits.undo()
    now = dict(edits.model.named_parameters())
    same_bits = all(torch.equal(now[name], value) for name, value in original.items())
    mo.md(f"## All rounds are undone\n\nEvery weight is as it was, to the bit: **{same_bits}**.")
    return (same_bits,)


if __name__ == "__main__":
    app.run()
