"""BELLE: Alpaca's loop with Chinese prompts and rules, ten tasks a request (LianjiaTech/BELLE, `data/1.5M`).

The original's novelty was BM25 above 18 against an index built once; here it is ROUGE-L over
characters against everything accepted, as in every other recipe.
"""

from __future__ import annotations

from selfinstruct.recipes import Recipe, alpaca
from selfinstruct.values import Task

RECIPE = Recipe(
    name="belle",
    summary="Alpaca's loop as BELLE ran it: Chinese by default, seven new tasks per request",
    source="LianjiaTech/BELLE",
    styles=alpaca.RECIPE.styles,
    prompts=("belle", "alpaca"),
    variables=alpaca.VARIABLES,
    stages=alpaca.stages,
    preview=alpaca.preview,
    export="belle",
    accepts=(Task,),
    defaults={"language": "zh", "tasks_per_request": 7, "demonstrations": {"seed": 3, "machine": 0}},
    rehearse=alpaca.rehearse,
)
