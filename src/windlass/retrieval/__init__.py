"""Floor 3: from a folder to an answer.

Rooms, in the order data passes them: `types` (the records), `passages` (documents cut into passages), `lexical` and
`dense` (the two indexes), `hybrid` (their fusion), `answer` (sentences with citations), `pipeline` (all of it over
one folder), `evaluate` (how good it is).
"""
